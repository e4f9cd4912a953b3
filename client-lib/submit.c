/* SPDX-License-Identifier: Apache-2.0 */
/*
 * submit.c - from arguments to a published ring entry.  No system call unless the lane sleeps.
 *
 * Every step that can fail comes before the entry is published, so that a call which returns < 0 leaves
 * nothing behind and one that returns 0 completes exactly once.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "client-lib/client.h"
#include "ipc/sqe_check.h"

_Static_assert(sizeof(struct skvc_key) == sizeof(struct skvc_abi_key),
	       "one layout, copied as it is");
_Static_assert(offsetof(struct skvc_key, group) == offsetof(struct skvc_abi_key, group), "key");
_Static_assert(offsetof(struct skvc_key, len) == offsetof(struct skvc_abi_key, len), "key");
_Static_assert(SKVC_BLOCKS_MAX == SKVC_ABI_BLOCKS_MAX, "limits agree");
_Static_assert(SKVC_KEY_BYTES == SKVC_ABI_KEY_BYTES, "limits agree");

/* ---- packing ---- */

static uint32_t list_bytes(const struct client_op *op)
{
	uint32_t bytes = 0;

	/* count <= 4096 and count * block_tokens <= 65536 by now: below 1 MiB. */
	if (op->parent)
		bytes += (uint32_t)sizeof(struct skvc_abi_key);
	if (op->keys)
		bytes += op->sqe.count * (uint32_t)sizeof(struct skvc_abi_key);
	if (op->blocks)
		bytes += op->sqe.count * (uint32_t)sizeof(uint32_t);
	if (op->tokens)
		bytes += op->sqe.count * op->block_tokens * (uint32_t)sizeof(uint32_t);
	return bytes;
}

static uint32_t result_words(const struct client_op *op)
{
	uint32_t words = (op->sqe.count + 63) / 64;

	if (op->ret_segments_ready)
		return words + 1;
	return op->ret_bitmap ? words : 0;
}

static uint8_t *put(uint8_t *at, const void *from, size_t bytes)
{
	memcpy(at, from, bytes);
	return at + bytes;
}

static void pack_list(const struct client_op *op, uint8_t *at)
{
	if (op->parent)
		at = put(at, op->parent, sizeof(*op->parent));
	if (op->keys)
		at = put(at, op->keys, op->sqe.count * sizeof(*op->keys));
	if (op->blocks)
		at = put(at, op->blocks, op->sqe.count * sizeof(*op->blocks));
	if (op->tokens)
		(void)put(at, op->tokens,
			  (size_t)op->sqe.count * op->block_tokens * sizeof(*op->tokens));
}

/* ---- resources ---- */

static bool have_job(const struct skvc_session *s, uint8_t op)
{
	return s->jobs_used + (op == SKVC_ABI_OP_ABORT ? 0 : 1) < s->jobs_max;
}

/*
 * A ring slot, a job and `bytes` of the argument area; when something is short, completions that wait in
 * the ring may give it back.
 */
static int find_room(struct skvc_session *s, uint8_t op, uint32_t bytes, uint32_t *ret_off)
{
	for (int attempt = 0; attempt < 2; attempt++) {
		int room = ring_produce_has(&s->sq, 1);

		if (room < 0) {
			client_fail(s, "the daemon's submission index is impossible");
			return client_error(s, -EPIPE, "the daemon broke the ring");
		}
		if (room && have_job(s, op) &&
		    (!bytes || !client_args_alloc(&s->args, bytes, ret_off)))
			return 0;
		if (!client_reap(s))
			break;
		if (s->gone)
			return client_error(s, -EPIPE, "the daemon is gone");
	}
	return client_error(s, -EAGAIN,
			    "ring, job table or argument area is full: poll, then repeat");
}

static void wake_lane(struct skvc_session *s)
{
	const uint64_t one = 1;
	ssize_t n;

	do {
		n = write(s->link.sq_fd, &one, sizeof(one));
	} while (n < 0 && errno == EINTR);
	/* EAGAIN: the counter is full, so the lane's descriptor is readable already. */
}

int client_submit(struct skvc_session *s, const struct client_op *op, uint64_t *ret_job)
{
	uint32_t args_bytes = list_bytes(op);
	uint32_t words = result_words(op);
	/* Results start on a cache line of their own behind the list. */
	uint32_t result_off = (args_bytes + CLIENT_ARGS_UNIT_BYTES - 1) &
			      ~(CLIENT_ARGS_UNIT_BYTES - 1);
	uint32_t total_bytes = words ? result_off + words * 8 : args_bytes;
	struct skvc_abi_sqe sqe = op->sqe;
	struct client_job *job;
	uint32_t off = 0;
	int r;

	if (total_bytes > s->args.total_bytes)
		return client_error(s, -E2BIG, "%u bytes of arguments, the session's area has %u",
				    total_bytes, s->args.total_bytes);
	if (__atomic_load_n(&s->link.header->daemon_state, __ATOMIC_ACQUIRE) !=
	    SKVC_ABI_DAEMON_OPEN)
		client_fail(s, "the daemon closed the session");
	if (s->gone)
		return client_error(s, -EPIPE, "the daemon is gone");
	r = find_room(s, sqe.opcode, total_bytes, &off);
	if (r < 0)
		return r;

	job = client_job_new(s, sqe.opcode, op->internal);
	job->count = sqe.count;
	job->region = op->region;
	job->ready_event = op->ready_event;
	job->done_event = op->done_event;
	job->args_off = off;
	job->args_bytes = total_bytes;
	job->ret_bitmap = op->ret_bitmap;
	job->ret_segments_ready = op->ret_segments_ready;
	job->segments_count = op->segments_count;

	sqe.user_data = client_job_handle(s, job);
	sqe.flags = (uint8_t)((op->tokens ? SKVC_ABI_SQE_TOKENS : 0) |
			      (op->parent ? SKVC_ABI_SQE_PARENT : 0) |
			      (op->ret_segments_ready ? SKVC_ABI_SQE_LAYER_PROGRESS : 0));
	if (args_bytes) {
		sqe.args_rel = off;
		sqe.args_bytes = args_bytes;
		pack_list(op, s->link.segment + s->link.layout.args_off + off);
	}
	if (words) {
		sqe.result_rel = off + result_off;
		sqe.result_bytes = words * 8;
		job->result_rel = sqe.result_rel;
		memset(s->link.segment + s->link.layout.args_off + sqe.result_rel, 0, words * 8);
	}
	if (op->ret_bitmap)
		memset(op->ret_bitmap, 0, (size_t)(sqe.count + 63) / 64 * 8);
	if (op->ret_segments_ready) {
		*op->ret_segments_ready = 0;
		client_list_append(s, &s->jobs_progress, job);
	}

	ring_produce(&s->sq, &sqe);
	*ret_job = sqe.user_data;
	if (ring_publish(&s->sq))
		wake_lane(s);
	return 0;
}

/* ---- checks of arguments ---- */

static int check_count(struct skvc_session *s, uint32_t count)
{
	if (!count)
		return client_error(s, -EINVAL, "count is 0");
	if (count > SKVC_BLOCKS_MAX)
		return client_error(s, -E2BIG, "count %u is above %u", count, SKVC_BLOCKS_MAX);
	return 0;
}

static int check_keys(struct skvc_session *s, const struct skvc_key *keys, uint32_t count)
{
	if (!keys)
		return client_error(s, -EINVAL, "keys is NULL");
	for (uint32_t i = 0; i < count; i++) {
		struct skvc_abi_key key;

		memcpy(&key, &keys[i], sizeof(key));
		if (sqe_check_key(&key) != SKVC_ABI_REASON_NONE)
			return client_error(s, -EINVAL,
					    "key %u: len outside 16..32, or bytes after it", i);
	}
	return 0;
}

static int check_parent(struct skvc_session *s, const struct skvc_key *parent)
{
	struct skvc_abi_key key;

	if (!parent)
		return 0;
	memcpy(&key, parent, sizeof(key));
	if (sqe_check_key(&key) != SKVC_ABI_REASON_NONE)
		return client_error(s, -EINVAL,
				    "parent key: len outside 16..32, or bytes after it");
	return 0;
}

static int check_tokens(struct skvc_session *s, const uint32_t *tokens, uint32_t count,
			uint32_t block_tokens)
{
	if (tokens && (uint64_t)count * block_tokens > SKVC_ABI_TOKENS_MAX)
		return client_error(s, -E2BIG, "%u blocks of %u tokens are more than %u tokens",
				    count, block_tokens, SKVC_ABI_TOKENS_MAX);
	return 0;
}

/* Namespace, count and keys: what most calls begin with. */
static int begin(struct skvc_session *s, uint32_t ns, const struct skvc_key *keys, uint32_t count,
		 struct client_namespace **ret_ns)
{
	struct client_namespace *namespace;
	int r;

	r = client_enter(s);
	if (r < 0)
		return r;
	namespace = client_namespace_find(s, ns);
	if (!namespace)
		return client_error(s, -EINVAL, "no namespace %u", ns);
	r = check_count(s, count);
	if (r < 0)
		return r;
	r = check_keys(s, keys, count);
	if (r < 0)
		return r;
	*ret_ns = namespace;
	return 0;
}

static int check_blocks(struct skvc_session *s, uint32_t region_handle, const uint32_t *blocks,
			uint32_t count, struct client_region **ret_region)
{
	struct client_region *region = client_region_find(s, region_handle);

	if (!region || !region->ns)
		return client_error(s, -ESTALE, "no region 0x%x", region_handle);
	if (!blocks)
		return client_error(s, -EINVAL, "blocks is NULL");
	for (uint32_t i = 0; i < count; i++)
		if (blocks[i] >= region->blocks_count)
			return client_error(s, -EINVAL, "blocks[%u] is %u, the region has %u", i,
					    blocks[i], region->blocks_count);
	*ret_region = region;
	return 0;
}

static int find_event(struct skvc_session *s, const struct client_region *region, uint32_t event,
		      uint32_t *ret_handle)
{
	const struct client_region *entry = client_region_find(s, event);

	if (!event)
		return 0;
	if (!entry || entry->ns)
		return client_error(s, -ESTALE, "no event 0x%x", event);
	if (region->arena)
		return client_error(s, -EINVAL, "an event, but the region is no GPU memory");
	*ret_handle = entry->handle;
	return client_gpu_known(s);
}

/* Into op: the caller's handles to remember, the daemon's to send. */
static int take_events(struct skvc_session *s, const struct client_region *region,
		       uint32_t ready_event, uint32_t done_event, struct client_op *op)
{
	uint32_t ready = 0, done = 0;
	int r;

	r = find_event(s, region, ready_event, &ready);
	if (!r)
		r = find_event(s, region, done_event, &done);
	if (r < 0)
		return r;
	op->ready_event = ready_event;
	op->done_event = done_event;
	op->sqe.arg = skvc_abi_events(ready, done);
	return 0;
}

/* ---- the operations ---- */

int client_submit_lookup(struct skvc_session *s, const struct skvc_lookup *args, bool internal,
			 uint64_t *ret_job)
{
	struct client_namespace *namespace;
	struct client_op op = { .internal = internal };
	int r;

	if (!args || !ret_job)
		return client_error(s, -EINVAL, "args or ret_job is NULL");
	r = begin(s, args->ns, args->keys, args->count, &namespace);
	if (r < 0)
		return r;
	r = check_parent(s, args->parent);
	if (r < 0)
		return r;
	r = check_tokens(s, args->tokens, args->count, namespace->block_tokens);
	if (r < 0)
		return r;
	if (args->lease_ttl_ns > SKVC_ABI_TTL_NS_MAX)
		return client_error(s, -EINVAL, "lease_ttl_ns is above 24 h");
	op.sqe.opcode = SKVC_ABI_OP_LOOKUP;
	op.sqe.ns = namespace->handle;
	op.sqe.count = args->count;
	op.sqe.arg = args->lease_ttl_ns;
	op.keys = args->keys;
	op.parent = args->parent;
	op.tokens = args->tokens;
	op.block_tokens = namespace->block_tokens;
	return client_submit(s, &op, ret_job);
}

int client_submit_load(struct skvc_session *s, const struct skvc_load *args, bool internal,
		       uint64_t *ret_job)
{
	struct client_namespace *namespace;
	struct client_op op = { .internal = internal };
	struct client_region *region;
	int r;

	r = client_enter(s);
	if (r < 0)
		return r;
	if (!args || !ret_job)
		return client_error(s, -EINVAL, "args or ret_job is NULL");
	if (!args->lease)
		return client_error(s, -EINVAL, "lease is 0");
	r = check_count(s, args->count);
	if (r < 0)
		return r;
	if (args->first >= SKVC_BLOCKS_MAX || args->count > SKVC_BLOCKS_MAX - args->first)
		return client_error(s, -EINVAL, "first %u, count %u: a lease has at most %u blocks",
				    args->first, args->count, SKVC_BLOCKS_MAX);
	r = check_blocks(s, args->region, args->blocks, args->count, &region);
	if (r < 0)
		return r;
	r = take_events(s, region, args->ready_event, args->done_event, &op);
	if (r < 0)
		return r;
	namespace = client_namespace_find(s, region->ns);
	if (args->skip_tokens >= namespace->block_tokens)
		return client_error(s, -EINVAL, "skip_tokens %u: a block has %u tokens",
				    args->skip_tokens, namespace->block_tokens);
	op.sqe.opcode = SKVC_ABI_OP_LOAD;
	op.sqe.lease = args->lease;
	op.sqe.region = region->handle;
	op.sqe.first = args->first;
	op.sqe.count = args->count;
	op.sqe.skip_tokens = args->skip_tokens;
	op.region = args->region;
	op.blocks = args->blocks;
	op.ret_bitmap = args->ret_bitmap;
	op.ret_segments_ready = args->ret_segments_ready;
	op.segments_count = namespace->segments_count;
	return client_submit(s, &op, ret_job);
}

int client_submit_store(struct skvc_session *s, const struct skvc_store *args, bool internal,
			uint64_t *ret_job)
{
	struct client_namespace *namespace;
	struct client_op op = { .internal = internal };
	struct client_region *region;
	int r;

	if (!args || !ret_job)
		return client_error(s, -EINVAL, "args or ret_job is NULL");
	r = begin(s, args->ns, args->keys, args->count, &namespace);
	if (r < 0)
		return r;
	r = check_parent(s, args->parent);
	if (r < 0)
		return r;
	r = check_tokens(s, args->tokens, args->count, namespace->block_tokens);
	if (r < 0)
		return r;
	r = check_blocks(s, args->region, args->blocks, args->count, &region);
	if (r < 0)
		return r;
	if (region->ns != args->ns)
		return client_error(s, -EINVAL, "region 0x%x belongs to namespace %u", args->region,
				    region->ns);
	r = take_events(s, region, args->ready_event, 0, &op);
	if (r < 0)
		return r;
	op.sqe.opcode = SKVC_ABI_OP_STORE;
	op.sqe.ns = namespace->handle;
	op.sqe.region = region->handle;
	op.sqe.count = args->count;
	op.region = args->region;
	op.keys = args->keys;
	op.parent = args->parent;
	op.blocks = args->blocks;
	op.tokens = args->tokens;
	op.block_tokens = namespace->block_tokens;
	op.ret_bitmap = args->ret_bitmap;
	return client_submit(s, &op, ret_job);
}

int client_submit_release(struct skvc_session *s, uint64_t lease, bool internal, uint64_t *ret_job)
{
	struct client_op op = { .internal = internal };
	int r;

	r = client_enter(s);
	if (r < 0)
		return r;
	if (!lease || !ret_job)
		return client_error(s, -EINVAL, "lease is 0 or ret_job is NULL");
	op.sqe.opcode = SKVC_ABI_OP_RELEASE;
	op.sqe.lease = lease;
	return client_submit(s, &op, ret_job);
}

static int submit_keys(struct skvc_session *s, uint8_t opcode, uint32_t ns,
		       const struct skvc_key *keys, uint32_t count, uint64_t ttl_ns,
		       uint64_t *ret_job)
{
	struct client_namespace *namespace;
	struct client_op op = { 0 };
	int r;

	r = begin(s, ns, keys, count, &namespace);
	if (r < 0)
		return r;
	if (!ret_job)
		return client_error(s, -EINVAL, "ret_job is NULL");
	if (ttl_ns > SKVC_ABI_TTL_NS_MAX)
		return client_error(s, -EINVAL, "ttl_ns is above 24 h");
	op.sqe.opcode = opcode;
	op.sqe.ns = namespace->handle;
	op.sqe.count = count;
	op.sqe.arg = ttl_ns;
	op.keys = keys;
	return client_submit(s, &op, ret_job);
}

int skvc_lookup(struct skvc_session *session, const struct skvc_lookup *args, uint64_t *ret_job)
{
	return client_submit_lookup(session, args, false, ret_job);
}

int skvc_load(struct skvc_session *session, const struct skvc_load *args, uint64_t *ret_job)
{
	return client_submit_load(session, args, false, ret_job);
}

int skvc_store(struct skvc_session *session, const struct skvc_store *args, uint64_t *ret_job)
{
	return client_submit_store(session, args, false, ret_job);
}

int skvc_release(struct skvc_session *session, uint64_t lease, uint64_t *ret_job)
{
	return client_submit_release(session, lease, false, ret_job);
}

int skvc_touch(struct skvc_session *session, uint32_t ns, const struct skvc_key *keys,
	       uint32_t count, uint64_t *ret_job)
{
	return submit_keys(session, SKVC_ABI_OP_TOUCH, ns, keys, count, 0, ret_job);
}

int skvc_drop(struct skvc_session *session, uint32_t ns, const struct skvc_key *keys,
	      uint32_t count, uint64_t *ret_job)
{
	return submit_keys(session, SKVC_ABI_OP_DROP, ns, keys, count, 0, ret_job);
}

int skvc_pin(struct skvc_session *session, uint32_t ns, const struct skvc_key *keys, uint32_t count,
	     uint64_t ttl_ns, uint64_t *ret_job)
{
	return submit_keys(session, SKVC_ABI_OP_PIN, ns, keys, count, ttl_ns, ret_job);
}

int skvc_nop(struct skvc_session *session, uint64_t *ret_job)
{
	const struct client_op op = { .sqe.opcode = SKVC_ABI_OP_NOP };
	int r;

	r = client_enter(session);
	if (r < 0)
		return r;
	if (!ret_job)
		return client_error(session, -EINVAL, "ret_job is NULL");
	return client_submit(session, &op, ret_job);
}
