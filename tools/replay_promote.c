/* SPDX-License-Identifier: Apache-2.0 */
/* replay_promote.c - see replay_promote.h.  A block's number is its id in the policy. */
#include "tools/replay_promote.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#include "daemon/policy.h"
#include "tools/replay_policies.h"

#define BELOW (1u << POLICY_BELOW)
#define THIRD 3u

struct item {
	uint32_t parent, children; /* in either tier */
	uint32_t uses;
	bool held;
};

struct tiers {
	struct policy *policy; /* owned */
	struct item *item;     /* owned */
	enum replay_promotion rule;
	uint32_t host_blocks, nvme_blocks;
	uint32_t nvme; /* that are there */
	struct replay_promote_result r;
};

const char *const replay_promotion_names[REPLAY_PROMOTIONS] = {
	[REPLAY_PROMOTE_ALWAYS] = "always",
	[REPLAY_PROMOTE_WORTH] = "worth",
	[REPLAY_PROMOTE_THIRD] = "third",
	[REPLAY_PROMOTE_NEVER] = "never",
};

/* On NVMe what has children anywhere stays: a chain is lost from its end. */
static void settle(struct tiers *s, uint32_t id)
{
	const struct item *i = &s->item[id];

	if (i->held || (policy_place(s->policy, id) == POLICY_BELOW && i->children))
		policy_hold(s->policy, id);
	else
		policy_unhold(s->policy, id);
}

static void lose(struct tiers *s, uint32_t id)
{
	uint32_t parent = s->item[id].parent;

	policy_remove(s->policy, id, parent, replay_hash(id));
	policy_reset(s->policy, id);
	s->nvme--;
	if (parent == POLICY_NONE)
		return;
	s->item[parent].children--;
	settle(s, parent);
}

static void to_nvme(struct tiers *s, uint32_t id)
{
	policy_move(s->policy, id, s->item[id].parent, POLICY_BELOW);
	s->nvme++;
	settle(s, id);
	while (s->nvme > s->nvme_blocks) {
		id = policy_victim(s->policy, BELOW, POLICY_ALL, NULL, NULL);
		if (id == POLICY_NONE)
			return; /* until the request lets go */
		lose(s, id);
	}
}

static uint32_t host_victim(struct tiers *s)
{
	return policy_victim(s->policy, POLICY_ALL & ~BELOW, POLICY_ALL, NULL, NULL);
}

/* false: all that is in the host is held. */
static bool make_room(struct tiers *s)
{
	while (policy_count(s->policy) >= s->host_blocks) {
		uint32_t id = host_victim(s);

		if (id == POLICY_NONE)
			return false;
		to_nvme(s, id);
	}
	return true;
}

static bool wanted(struct tiers *s, uint32_t id)
{
	uint32_t victim;

	if (policy_count(s->policy) < s->host_blocks)
		return true;
	switch (s->rule) {
	case REPLAY_PROMOTE_WORTH:
		victim = host_victim(s);
		return victim != POLICY_NONE &&
		       policy_worth(s->policy, id) >= policy_worth(s->policy, victim);
	case REPLAY_PROMOTE_THIRD:
		return s->item[id].uses >= THIRD;
	default:
		return s->rule == REPLAY_PROMOTE_ALWAYS;
	}
}

static void promote(struct tiers *s, uint32_t id)
{
	if (policy_place(s->policy, id) != POLICY_BELOW || !wanted(s, id) || !make_room(s))
		return;
	policy_move(s->policy, id, s->item[id].parent, 0);
	s->nvme--;
}

static void use(struct tiers *s, uint32_t id, bool last)
{
	s->item[id].uses++;
	policy_use(s->policy, id, replay_hash(id), last);
}

static bool store(struct tiers *s, uint32_t id, uint32_t parent, bool last)
{
	struct item *i = &s->item[id];

	if (!policy_admits(s->policy, replay_hash(id), last) || !make_room(s))
		return false;
	policy_insert(s->policy, id, 0, parent, replay_hash(id), last);
	i->uses++;
	i->held = true;
	i->parent = parent;
	if (parent != POLICY_NONE)
		s->item[parent].children++;
	return true;
}

static void hold(struct tiers *s, uint32_t id)
{
	s->item[id].held = true;
	settle(s, id);
}

static uint32_t find(struct tiers *s, const uint32_t *block, uint32_t count)
{
	uint32_t hits = 0;

	for (; hits < count && policy_has(s->policy, block[hits]); hits++) {
		uint64_t *found = policy_place(s->policy, block[hits]) == POLICY_BELOW ? &s->r.nvme
										       : &s->r.host;

		++*found;
		hold(s, block[hits]);
	}
	return hits;
}

static void request(struct tiers *s, const uint32_t *block, uint32_t count)
{
	uint32_t hits = find(s, block, count), n;

	for (n = 0; n < hits; n++)
		use(s, block[n], n + 1 == count);
	for (n = 0; n < hits; n++)
		promote(s, block[n]);
	for (; n < count; n++) {
		if (policy_has(s->policy, block[n])) { /* behind a gap, or twice in one request */
			hold(s, block[n]);
			use(s, block[n], n + 1 == count);
		} else if (!store(s, block[n], n ? block[n - 1] : POLICY_NONE, n + 1 == count)) {
			break;
		}
	}
	while (n-- > 0) {
		s->item[block[n]].held = false;
		settle(s, block[n]);
	}
}

int replay_promote(const struct replay_trace *t, enum replay_promotion rule, uint32_t host_blocks,
		   uint32_t nvme_blocks, struct replay_promote_result *ret)
{
	struct tiers s = { .rule = rule, .host_blocks = host_blocks, .nvme_blocks = nvme_blocks };
	int r = policy_new(t->blocks, host_blocks + nvme_blocks, &s.policy);

	s.item = calloc(t->blocks, sizeof(*s.item));
	if (r == 0 && !s.item)
		r = -ENOMEM;
	for (uint32_t i = 0; r == 0 && i < t->requests; i++)
		request(&s, t->block + t->first[i], t->first[i + 1] - t->first[i]);
	policy_free(s.policy);
	free(s.item);
	if (r == 0)
		*ret = s.r;
	return r;
}
