/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lane_rig.c - see lane_rig.h.  Runs on the test's thread; the lane runs on its own, as in the daemon.
 */
#include "tests/lib/lane_rig.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cmocka.h>
#include <sodium.h>

#include "daemon/util/clock.h"
#include "ipc/segment.h"
#include "ipc/wake.h"

#define LEASE_NS (3600 * 1000000000ull)

void lane_rig_config(struct config *ret)
{
	config_default(ret);
	ret->pool_bytes = 32u << 20;
	ret->lock_memory = 0;
	ret->cpu_workers = 1;
	ret->nvme_path[0] = 0;
	(void)snprintf(ret->gpu_device, sizeof(ret->gpu_device), "none");
	ret->blocks_max = 4096;
	ret->sessions_max = 4;
	ret->namespaces_max = 4;
	ret->leases_max = 64;
	ret->lease_share_percent = 100; /* tests fill the pool with what they hold */
	ret->store_wait_ns = 200000000;
	ret->lease_ttl_ns = ret->lease_ttl_max_ns = LEASE_NS; /* however slow the machine is */
	ret->profile_priority =
		DEVICE_PRIORITY_NORMAL; /* else a busy machine never comes to a fit */
	ret->plan = 0; /* `auto` as if there were time for everything, and no probe at each start */
}

static int give_ns(void *user, const struct lane_saved_ns *saved, struct namespace **ret_ns)
{
	struct rig *rig = user;

	if (memcmp(saved->digest, rig->ns.digest, sizeof(rig->ns.digest)) != 0)
		return -ESTALE;
	*ret_ns = &rig->ns;
	return 0;
}

static void rig_start(struct rig *rig, const struct config *config,
		      const struct lane_restore *restore)
{
	struct codec_segment segment[RIG_LAYERS * 2];
	char err[256] = "";

	assert_true(sodium_init() >= 0);
	memset(rig, 0, sizeof(*rig));
	rig->config = *config;
	for (unsigned i = 0; i < RIG_LAYERS * 2; i++)
		segment[i] = (struct codec_segment){
			.kind = i % 2 ? CODEC_KIND_V : CODEC_KIND_K,
			.dtype = CODEC_DTYPE_BF16,
			.layer = (uint16_t)(i / 2),
			.heads = RIG_HEADS,
			.head_dim = RIG_DIM,
		};
	assert_int_equal(codec_geometry_init(&rig->ns.geom, RIG_TOKENS, segment, RIG_LAYERS * 2),
			 0);
	rig->ns.tenant = &rig->tenant;
	memset(rig->ns.digest, 0x5a, sizeof(rig->ns.digest));
	if (lane_start(config, restore, &rig->lane, err, sizeof(err)) < 0)
		fail_msg("lane_start: %s", err);
}

void lane_rig_start(struct rig *rig, const struct config *config)
{
	rig_start(rig, config, NULL);
}

void lane_rig_start_again(struct rig *rig, const struct config *config)
{
	rig_start(rig, config, &(struct lane_restore){ .ns = give_ns, .user = rig });
}

void lane_rig_start_warm(struct rig *rig, const struct config *config, int pool_fd, int index_fd)
{
	rig_start(rig, config,
		  &(struct lane_restore){
			  .ns = give_ns, .user = rig, .pool_fd = pool_fd, .index_fd = index_fd });
}

void lane_rig_stop(struct rig *rig)
{
	assert_int_equal(mailbox_send(lane_inbox(rig->lane), &(struct mail){ .type = LANE_STOP }),
			 0);
	rig->lane = lane_join(rig->lane);
	codec_geometry_deinit(&rig->ns.geom);
}

struct mail lane_rig_mail(struct rig *rig, uint32_t type)
{
	uint64_t start_ns = clock_now_ns();
	struct mail m;

	for (;;) {
		if (mailbox_recv(lane_outbox(rig->lane), &m)) {
			if (m.type == type)
				return m;
		} else if (clock_now_ns() - start_ns > RIG_WAIT_NS) {
			fail_msg("no mail of type %u", type);
		} else {
			sched_yield();
		}
	}
}

static void send_mail(struct rig *rig, const struct mail *m)
{
	assert_int_equal(mailbox_send(lane_inbox(rig->lane), m), 0);
}

void lane_rig_ask(struct rig *rig, const struct mail *m, int32_t res)
{
	send_mail(rig, m);
	assert_int_equal(lane_rig_mail(rig, m->type).res, res);
}

static void make_segment(struct lane_rig_session *rs)
{
	struct session *s = &rs->s;
	struct skvc_abi_header *h;
	void *base;
	int fd;

	assert_int_equal(segment_layout(64, rs->rig->config.leases_max, RIG_ARGS_BYTES, &s->layout),
			 0);
	s->segment_bytes = s->layout.segment_bytes;
	assert_int_equal(segment_create("rig", s->segment_bytes, &fd), 0);
	assert_int_equal(segment_map(fd, s->segment_bytes, &base), 0);
	close(fd);
	s->segment = base;
	h = base;
	*h = s->layout;
	h->daemon_state = SKVC_ABI_DAEMON_OPEN;
	ring_init(&rs->sq, s->segment + h->sq_off, h->sq_entries, &h->sq_tail, &h->sq_head);
	ring_init(&rs->cq, s->segment + h->cq_off, h->cq_entries, &h->cq_head, &h->cq_tail);
}

void lane_rig_session_open(struct rig *rig, struct lane_rig_session *rs)
{
	lane_rig_session_open_ns(rig, rs, &rig->ns);
}

void lane_rig_session_open_ns(struct rig *rig, struct lane_rig_session *rs, struct namespace *ns)
{
	struct session *s = &rs->s;
	uint64_t bytes = RIG_PAGES * rig->ns.geom.raw_bytes;
	struct codec_stride stride[RIG_LAYERS * 2];
	uint64_t block_stride[RIG_LAYERS * 2];

	memset(rs, 0, sizeof(*rs));
	rs->rig = rig;
	rs->handle = 1;
	s->slot = rig->sessions++;
	s->id = s->slot + 1;
	s->tenant = ns->tenant;
	s->sq_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	assert_int_equal(wake_pair(&s->cq_fd, &rs->wake_fd), 0);
	make_segment(rs);
	rs->memory = aligned_alloc(4096, bytes);
	assert_non_null(rs->memory);
	for (unsigned i = 0; i < RIG_LAYERS * 2; i++) {
		block_stride[i] = rig->ns.geom.raw_bytes;
		stride[i] = (struct codec_stride){ .off = rig->ns.geom.segment_off[i],
						   .token_stride = RIG_HEADS * RIG_DIM * 2,
						   .head_stride = RIG_DIM * 2 };
	}
	assert_int_equal(device_region_init(&rs->region.dev, &rig->ns.geom, rs->memory, bytes,
					    RIG_PAGES, stride, block_stride),
			 0);
	rs->region.ns = ns;
	lane_rig_ask(rig, &(struct mail){ .type = LANE_SESSION_ADD, .subject = s }, 0);
	lane_rig_ask(rig,
		     &(struct mail){ .type = LANE_NS_ADD, .subject = s, .object = ns, .value = 1 },
		     0);
	lane_rig_ask(
		rig,
		&(struct mail){
			.type = LANE_REGION_ADD, .subject = s, .object = &rs->region, .value = 1 },
		0);
}

void lane_rig_session_close(struct lane_rig_session *rs)
{
	send_mail(rs->rig, &(struct mail){ .type = LANE_SESSION_END,
					   .subject = &rs->s,
					   .value = SKVC_ABI_REASON_CLIENT_GONE });
	assert_ptr_equal(lane_rig_mail(rs->rig, LANE_SESSION_GONE).subject, &rs->s);
	assert_int_equal(rs->region.users, 0);
	device_region_deinit(&rs->region.dev);
	segment_unmap(rs->s.segment, rs->s.segment_bytes);
	close(rs->s.sq_fd);
	close(rs->s.cq_fd);
	close(rs->wake_fd);
	free(rs->memory);
}

uint8_t *lane_rig_page(struct lane_rig_session *rs, uint32_t page)
{
	return rs->memory + page * rs->rig->ns.geom.raw_bytes;
}

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

/* Sum of uniforms, scaled per channel, rounded to bf16 by cutting: near enough to real KV. */
static uint16_t value(uint64_t *state, unsigned channel)
{
	uint64_t r = next_random(state);
	float sum = 0, scale = ldexpf(1.0f, (int)(channel % 7) - 3);
	uint32_t bits;

	for (unsigned i = 0; i < 4; i++)
		sum += (float)(r >> (16 * i) & 0xffff) / 65536.0f - 0.5f;
	sum *= scale;
	memcpy(&bits, &sum, sizeof(bits));
	return (uint16_t)(bits >> 16);
}

void lane_rig_make_page(const struct rig *rig, uint32_t seed, uint16_t *ret)
{
	uint64_t state = 0x9e3779b97f4a7c15ull * (seed + 1);

	for (uint64_t i = 0; i < rig->ns.geom.raw_bytes / 2; i++)
		ret[i] = value(&state, (unsigned)(i % (RIG_HEADS * RIG_DIM)));
}

void lane_rig_fill(struct lane_rig_session *rs, uint32_t page, uint32_t seed)
{
	lane_rig_make_page(rs->rig, seed, (uint16_t *)lane_rig_page(rs, page));
}

int lane_rig_page_is(struct lane_rig_session *rs, uint32_t page, uint32_t seed)
{
	static uint16_t want[RIG_LAYERS * 2 * RIG_TOKENS * RIG_HEADS * RIG_DIM];

	assert_int_equal(sizeof(want), rs->rig->ns.geom.raw_bytes);
	lane_rig_make_page(rs->rig, seed, want);
	return !memcmp(want, lane_rig_page(rs, page), sizeof(want));
}

struct skvc_abi_key lane_rig_key(uint32_t n)
{
	struct skvc_abi_key key = { .len = 32 };

	memset(key.bytes, 0xab, sizeof(key.bytes));
	memcpy(key.bytes, &n, sizeof(n));
	return key;
}

void lane_rig_submit(struct lane_rig_session *rs, const struct skvc_abi_sqe *sqe)
{
	uint64_t one = 1;

	assert_true(ring_produce_room(&rs->sq) > 0);
	ring_produce(&rs->sq, sqe);
	if (ring_publish(&rs->sq))
		assert_int_equal(write(rs->s.sq_fd, &one, sizeof(one)), sizeof(one));
}

int lane_rig_try_complete(struct lane_rig_session *rs, struct skvc_abi_cqe *ret)
{
	if (ring_consume_ready(&rs->cq) <= 0)
		return 0;
	ring_consume(&rs->cq, ret);
	ring_consume_done(&rs->cq);
	return 1;
}

struct skvc_abi_cqe lane_rig_complete(struct lane_rig_session *rs)
{
	uint64_t start_ns = clock_now_ns();
	struct skvc_abi_cqe cqe;

	while (!lane_rig_try_complete(rs, &cqe)) {
		if (clock_now_ns() - start_ns > RIG_WAIT_NS)
			fail_msg("no completion");
		sched_yield();
	}
	return cqe;
}

struct skvc_abi_cqe lane_rig_done(struct lane_rig_session *rs)
{
	struct skvc_abi_cqe cqe = lane_rig_complete(rs);

	return cqe.kind == SKVC_ABI_CQE_DONE ? cqe : lane_rig_complete(rs);
}

static uint32_t args_take(struct lane_rig_session *rs, uint32_t bytes)
{
	uint32_t rel = rs->args_next;

	bytes = (bytes + 7) & ~7u;
	if (rel + bytes > RIG_ARGS_BYTES)
		rel = 0;
	rs->args_next = rel + bytes;
	return rel;
}

static uint8_t *args_at(struct lane_rig_session *rs, uint32_t rel)
{
	return rs->s.segment + rs->s.layout.args_off + rel;
}

static uint32_t put_keys(struct lane_rig_session *rs, uint32_t first, uint32_t count,
			 uint32_t extra_bytes)
{
	uint32_t rel = args_take(rs, count * (uint32_t)sizeof(struct skvc_abi_key) + extra_bytes);

	for (uint32_t i = 0; i < count; i++) {
		struct skvc_abi_key key = lane_rig_key(first + i);

		memcpy(args_at(rs, rel + i * (uint32_t)sizeof(key)), &key, sizeof(key));
	}
	return rel;
}

static void store(struct lane_rig_session *rs, uint32_t first, uint32_t count, uint32_t page,
		  uint64_t user_data)
{
	uint32_t keys_bytes = count * (uint32_t)sizeof(struct skvc_abi_key);
	uint32_t rel = put_keys(rs, first, count, count * 4);

	for (uint32_t i = 0; i < count; i++) {
		uint32_t at = (page + i) % RIG_PAGES;

		memcpy(args_at(rs, rel + keys_bytes + i * 4), &at, 4);
	}
	lane_rig_submit(rs, &(struct skvc_abi_sqe){ .opcode = SKVC_ABI_OP_STORE,
						    .ns = 1,
						    .region = rs->handle,
						    .arg = rs->arg,
						    .user_data = user_data,
						    .count = count,
						    .args_rel = rel,
						    .args_bytes = keys_bytes + count * 4 });
}

void lane_rig_store(struct lane_rig_session *rs, uint32_t first, uint32_t count, uint64_t user_data)
{
	store(rs, first, count, first, user_data);
}

void lane_rig_store_at(struct lane_rig_session *rs, uint32_t first, uint32_t count, uint32_t page,
		       uint64_t user_data)
{
	store(rs, first, count, page, user_data);
}

static void on_keys_for(struct lane_rig_session *rs, uint8_t opcode, uint32_t first, uint32_t count,
			uint64_t ttl_ns, uint64_t user_data)
{
	uint32_t rel = put_keys(rs, first, count, 0);

	lane_rig_submit(rs, &(struct skvc_abi_sqe){
				    .opcode = opcode,
				    .ns = 1,
				    .user_data = user_data,
				    .arg = ttl_ns,
				    .count = count,
				    .args_rel = rel,
				    .args_bytes = count * (uint32_t)sizeof(struct skvc_abi_key) });
}

static void on_keys(struct lane_rig_session *rs, uint8_t opcode, uint32_t first, uint32_t count,
		    uint64_t user_data)
{
	on_keys_for(rs, opcode, first, count, 0, user_data);
}

void lane_rig_lookup_begin(struct lane_rig_session *rs, uint32_t first, uint32_t count,
			   uint64_t user_data)
{
	on_keys(rs, SKVC_ABI_OP_LOOKUP, first, count, user_data);
}

void lane_rig_drop(struct lane_rig_session *rs, uint32_t first, uint32_t count, uint64_t user_data)
{
	on_keys(rs, SKVC_ABI_OP_DROP, first, count, user_data);
}

struct skvc_abi_cqe lane_rig_lookup(struct lane_rig_session *rs, uint32_t first, uint32_t count)
{
	on_keys(rs, SKVC_ABI_OP_LOOKUP, first, count, 1000);
	return lane_rig_complete(rs);
}

struct skvc_abi_cqe lane_rig_pin(struct lane_rig_session *rs, uint32_t first, uint32_t count,
				 uint64_t ttl_ns)
{
	on_keys_for(rs, SKVC_ABI_OP_PIN, first, count, ttl_ns, 1000);
	return lane_rig_complete(rs);
}

void lane_rig_load(struct lane_rig_session *rs, uint64_t lease, uint32_t first_page, uint32_t count,
		   uint64_t user_data)
{
	uint32_t words = (count + 63) / 64 + (rs->flags & SKVC_ABI_SQE_LAYER_PROGRESS ? 1 : 0);
	uint32_t rel = args_take(rs, count * 4), result = args_take(rs, words * 8);

	for (uint32_t i = 0; i < count; i++) {
		uint32_t page = first_page + i;

		memcpy(args_at(rs, rel + i * 4), &page, 4);
	}
	rs->result_rel = result;
	lane_rig_submit(rs, &(struct skvc_abi_sqe){ .opcode = SKVC_ABI_OP_LOAD,
						    .region = rs->handle,
						    .arg = rs->arg,
						    .lease = lease,
						    .flags = rs->flags,
						    .skip_tokens = rs->skip_tokens,
						    .user_data = user_data,
						    .count = count,
						    .args_rel = rel,
						    .args_bytes = count * 4,
						    .result_rel = result,
						    .result_bytes = words * 8 });
}

struct skvc_abi_cqe lane_rig_release(struct lane_rig_session *rs, uint64_t lease)
{
	lane_rig_submit(rs, &(struct skvc_abi_sqe){ .opcode = SKVC_ABI_OP_RELEASE,
						    .lease = lease,
						    .user_data = 1001 });
	return lane_rig_complete(rs);
}

uint64_t lane_rig_bitmap(const struct lane_rig_session *rs, uint32_t rel)
{
	uint64_t word;

	memcpy(&word, rs->s.segment + rs->s.layout.args_off + rel, sizeof(word));
	return word;
}
