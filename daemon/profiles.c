/* SPDX-License-Identifier: Apache-2.0 */
/*
 * profiles.c - the profiles of a namespace: which is the newest, who uses the others, when one goes; and
 * whether blocks take what the newest promised.
 *
 * A profile's slot in the namespace is what blocks know it by.  It is used again once the last of them is
 * gone, so that NS_PROFILES_MAX bounds how many generations of blocks are here at a time, not how many there
 * have been.
 */
#include <assert.h>
#include <errno.h>
#include <math.h>
#include <string.h>

#include "daemon/lane_state.h"

#define DRIFTS_MAX \
	6u /* each time that a new profile did not help, the next look takes twice as long */

static uint64_t load_relaxed(const _Atomic uint64_t *word)
{
	return atomic_load_explicit(word, memory_order_relaxed);
}

static void store_relaxed(_Atomic uint64_t *word, uint64_t value)
{
	atomic_store_explicit(word, value, memory_order_relaxed);
}

uint64_t profiles_milli(double bits)
{
	return bits > 0 ? (uint64_t)llround(bits * 1000) : 0;
}

/* The strongest that it can do, as an index of what it promised. */
static unsigned strongest(const struct ns_profile *np)
{
	return np->can_model ? 2 : np->can_layer;
}

/* ---- life ---- */

/* Control reads version, the rest, and version again: see session.h. */
static void show(struct ns_profile *np)
{
	struct codec_layer_info layer = codec_profile_layer(np->p);
	const uint8_t *digest = codec_profile_digest(np->p);
	uint64_t prefix = 0;
	size_t bytes;

	for (unsigned i = 0; i < 8; i++)
		prefix = prefix << 8 | digest[i];
	(void)codec_profile_bytes(np->p, &bytes);
	store_relaxed(&np->digest, prefix);
	store_relaxed(&np->bytes, bytes);
	store_relaxed(&np->expected_milli, np->promised[strongest(np)]);
	store_relaxed(&np->measured_milli, 0);
	store_relaxed(&np->blocks, 0);
	atomic_store_explicit(&np->layer, np->can_layer, memory_order_relaxed);
	atomic_store_explicit(&np->previous, layer.previous, memory_order_relaxed);
	atomic_store_explicit(&np->rotary_pairs, layer.rotary_pairs, memory_order_relaxed);
	atomic_store_explicit(&np->newest, 1, memory_order_relaxed);
	atomic_store_explicit(&np->model, np->can_model ? 1u + codec_profile_model(np->p).draft : 0,
			      memory_order_relaxed);
	atomic_store_explicit(&np->version, np->number, memory_order_release);
}

static void free_both(struct ns_profile *np)
{
	np->retired = codec_profile_free(np->retired);
	np->p = codec_profile_free(np->p);
}

static void profile_end(struct lane *lane, struct ns_profile *np)
{
	size_t bytes;

	(void)codec_profile_bytes(np->p, &bytes);
	atomic_store_explicit(&np->version, 0, memory_order_relaxed);
	atomic_thread_fence(memory_order_release);
	if (lane->gpu && !lane->gpu_dead && lane->gpu->ops->profile_gone)
		lane->gpu->ops->profile_gone(lane->gpu, np->p);
	if (lane->gpu && !lane->gpu_dead && lane->gpu->ops->profile_gone && np->retired)
		lane->gpu->ops->profile_gone(lane->gpu, np->retired);
	free_both(np);
	stats_sub(&lane->stats, STAT_PROFILES, 1);
	stats_sub(&lane->stats, STAT_PROFILE_BYTES, bytes);
	stats_add(&lane->stats, STAT_PROFILES_FREED, 1);
}

struct ns_profile *profiles_use(struct ns_profile *np)
{
	if (np) {
		assert(np->p && np->users > 0);
		np->users++;
	}
	return np;
}

void profiles_drop(struct lane *lane, struct ns_profile *np)
{
	if (!np)
		return;
	assert(np->p && np->users > 0);
	if (--np->users == 0)
		profile_end(lane, np);
}

int profiles_room(const struct namespace *ns)
{
	for (unsigned i = 0; i < NS_PROFILES_MAX; i++)
		if (!ns->profile[i].p)
			return 1;
	return 0;
}

struct ns_profile *profiles_find(struct namespace *ns, const uint8_t *digest)
{
	for (unsigned i = 0; i < NS_PROFILES_MAX; i++)
		if (ns->profile[i].p &&
		    !memcmp(codec_profile_digest(ns->profile[i].p), digest, CODEC_DIGEST_BYTES))
			return &ns->profile[i];
	return NULL;
}

/* Takes p over, into a free slot, used once. */
static struct ns_profile *put(struct lane *lane, struct namespace *ns, struct codec_profile *p,
			      uint32_t number, uint64_t channel_milli, uint64_t layer_milli)
{
	const struct codec_model_info model = codec_profile_model(p);
	struct ns_profile *np = ns->profile;
	size_t bytes;

	while (np->p)
		np++;
	assert(np < ns->profile + NS_PROFILES_MAX);
	(void)codec_profile_bytes(p, &bytes);
	np->p = p;
	np->users = 1;
	np->number = number;
	np->can_layer = layer_milli != 0;
	np->can_model = model.attached;
	np->wants_ids = model.ids;
	np->promised[0] = channel_milli;
	np->promised[1] = layer_milli;
	np->promised[2] = profiles_milli(model.expected_bits);
	np->saved_in = 0;
	memset(np->seen_blocks, 0, sizeof(np->seen_blocks));
	memset(np->seen_bytes, 0, sizeof(np->seen_bytes));
	stats_add(&lane->stats, STAT_PROFILES, 1);
	stats_add(&lane->stats, STAT_PROFILE_BYTES, bytes);
	return np;
}

static void make_newest(struct lane *lane, struct namespace *ns, struct ns_profile *np)
{
	struct ns_profile *old = ns->newest;

	show(np);
	ns->newest = np;
	if (old && old != np)
		atomic_store_explicit(&old->newest, 0, memory_order_relaxed);
	profiles_drop(lane, old);
	atomic_store_explicit(&ns->profile_version, np->number, memory_order_relaxed);
	store_relaxed(&ns->profile_bits_milli, np->promised[strongest(np)]);
}

/* Takes p over; from now on it is the newest.  The caller has asked for room. */
void profiles_install(struct lane *lane, struct namespace *ns, struct codec_profile *p,
		      uint64_t tokens, uint64_t channel_milli, uint64_t layer_milli)
{
	struct ns_profile *np = put(lane, ns, p, ++ns->profiles_made, channel_milli, layer_milli);

	store_relaxed(&np->tokens, tokens);
	make_newest(lane, ns, np);
	stats_add(&lane->stats, STAT_PROFILES_FITTED, 1);
	stats_add(&lane->stats, STAT_PROFILES_LAYER, np->can_layer);
	lane->recode.look = 1;
	(void)mailbox_send(
		&lane->outbox,
		&(struct mail){ .type = LANE_PROFILE_NEW, .subject = ns, .value = np->number });
}

int profiles_restore(struct lane *lane, struct namespace *ns, struct codec_profile *p,
		     const struct profile_saved *saved, struct ns_profile **ret)
{
	struct ns_profile *np;

	if (!profiles_room(ns))
		return -ENOSPC;
	if (profiles_find(ns, codec_profile_digest(p)))
		return -EEXIST;
	np = put(lane, ns, p, saved->number, saved->promised[0], saved->promised[1]);
	store_relaxed(&np->tokens, saved->tokens);
	if (saved->number > ns->profiles_made)
		ns->profiles_made = saved->number;
	show(np);
	if (saved->newest) {
		make_newest(lane, ns, profiles_use(np));
		/* The last life had not come to its maps. */
		ns->sample_again = lane->config.speculator >= CONFIG_SPECULATOR_LAYER &&
				   !np->can_layer;
	} else {
		atomic_store_explicit(&np->newest, 0, memory_order_relaxed);
	}
	*ret = np;
	return 0;
}

/*
 * The namespace has it already, from an earlier life of the daemon: that one goes on, and gets the model if only
 * the other has it.  Takes p over.
 */
static void merge(struct lane *lane, struct namespace *ns, struct ns_profile *np,
		  struct codec_profile *p)
{
	if (!np->can_model && codec_profile_model(p).attached && !np->retired) {
		np->retired = np->p; /* tasks may have it */
		np->p = p;
		np->can_model = 1;
		np->wants_ids = codec_profile_model(p).ids;
		show(np);
		lane->recode.look = 1;
	} else {
		codec_profile_free(p);
	}
	if (ns->newest != np)
		make_newest(lane, ns, profiles_use(np));
}

/* One that came as a file.  Without room for it, it waits until old blocks have gone. */
void profiles_take_shipped(struct lane *lane, struct namespace *ns)
{
	struct codec_profile *p;
	struct ns_profile *np;
	uint64_t layer_milli;

	if (!atomic_load_explicit(&ns->shipped, memory_order_relaxed) || !profiles_room(ns))
		return;
	p = atomic_exchange_explicit(&ns->shipped, NULL, memory_order_acq_rel);
	if (!p)
		return;
	np = profiles_find(ns, codec_profile_digest(p));
	if (np) {
		merge(lane, ns, np, p);
		return;
	}
	layer_milli = profiles_milli(codec_profile_layer(p).expected_bits);
	profiles_install(lane, ns, p, 0, profiles_milli(codec_profile_expected_bits(p)),
			 lane->config.speculator >= CONFIG_SPECULATOR_LAYER ? layer_milli : 0);
}

/* The lane ends; blocks and tasks are gone. */
void profiles_ns_deinit(struct namespace *ns)
{
	for (unsigned i = 0; i < NS_PROFILES_MAX; i++)
		free_both(&ns->profile[i]);
	ns->newest = NULL;
}

/* ---- blocks ---- */

struct ns_profile *profiles_of_block(const struct lane *lane, const struct block *b)
{
	return b->profile ? &lane->ns[b->ns]->profile[b->profile - 1] : NULL;
}

/* From now on it is coded with this one, or with none. */
void profiles_set_block(struct lane *lane, struct block *b, struct ns_profile *np)
{
	struct ns_profile *old = profiles_of_block(lane, b);

	if (np)
		store_relaxed(&np->blocks, load_relaxed(&np->blocks) + 1);
	b->profile = np ? (profiles_use(np) - lane->ns[b->ns]->profile + 1) & 15 : 0;
	if (old)
		store_relaxed(&old->blocks, load_relaxed(&old->blocks) - 1);
	profiles_drop(lane, old);
}

/* A mark for blocks: that this profile was tried.  Never 0. */
uint8_t profiles_mark(const struct ns_profile *np)
{
	return (uint8_t)(np->number % 255u + 1u);
}

/* ---- what is promised and what is kept ---- */

static uint64_t milli_of(const struct namespace *ns, uint64_t bytes, uint64_t blocks)
{
	uint64_t scalars = 0;

	for (uint32_t i = 0; i < ns->geom.segments_count; i++)
		scalars += (uint64_t)ns->geom.block_tokens * ns->geom.segments[i].heads *
			   ns->geom.segments[i].head_dim;
	return profiles_milli((double)bytes * 8 / ((double)scalars * (double)blocks));
}

double profiles_promised_ratio(const struct namespace *ns, uint8_t speculator)
{
	const struct ns_profile *np = ns->newest;
	uint64_t promised = np->promised[speculator - CODEC_SPEC_CHANNEL];
	uint64_t raw_milli = milli_of(ns, ns->geom.raw_bytes, 1);

	return raw_milli ? (double)promised / (double)raw_milli : 0;
}

/* A block was coded with it, whatever came of that: see once in a while whether the data has changed. */
void profiles_seen(struct lane *lane, struct namespace *ns, struct ns_profile *np, uint8_t asked,
		   uint64_t bytes)
{
	unsigned i = asked == CODEC_SPEC_MODEL ? 2 : asked == CODEC_SPEC_LAYER;
	uint64_t blocks, milli;

	if (!np || np != ns->newest || i > strongest(np))
		return;
	blocks = ++np->seen_blocks[i];
	np->seen_bytes[i] += bytes;
	milli = milli_of(ns, np->seen_bytes[i], blocks);
	if (i == strongest(np))
		store_relaxed(&np->measured_milli, milli);
	if (blocks < (uint64_t)lane->config.drift_blocks << ns->drifts)
		return;
	np->seen_blocks[i] = np->seen_bytes[i] = 0;
	if (np->can_model || !lane->config.drift_percent || ns->fit_state != NS_FIT_IDLE ||
	    ns->sample_again)
		return;
	if (milli * 100 <= np->promised[i] * (100 + lane->config.drift_percent)) {
		ns->drifts = 0;
		return;
	}
	if (ns->drifts < DRIFTS_MAX)
		ns->drifts++;
	ns->sample_again = 1;
	stats_add(&lane->stats, STAT_PROFILE_DRIFTS, 1);
	profiler_note(lane, ns, PROFILE_NOTE_DRIFT, 0);
}
