/* SPDX-License-Identifier: Apache-2.0 */
/*
 * intake.c - from a session's submission ring to one handler per operation.
 *
 * Each entry is copied out once, its shape is checked by ipc/sqe_check, its argument list is copied out
 * once into the lane's scratch buffer and checked there, its handles are looked up in the session's own
 * tables; only then does anything happen.  A malformed entry can only come from a broken or hostile
 * client and ends its session; a well-formed one that asks for what is not there is answered.
 *
 * Room for its completions is reserved before an entry is taken, so completing never waits for a client.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "daemon/lane_state.h"
#include "daemon/log.h"
#include "ipc/sqe_check.h"
#include "ipc/wake.h"

#define INTAKE_CQES_PER_JOB 2u
#define INTAKE_BLOCKS 4096u /* a session's turn is over when its entries have named so many */

/* The entry at hand and its checked parts; all point into private memory. */
struct intake {
	struct skvc_abi_sqe sqe;
	struct namespace *ns;
	struct job_regions regions;
	const struct skvc_abi_key *parent;
	const struct skvc_abi_key *keys;
	const uint32_t *pages;
	const uint32_t *tokens;
	struct skvc_abi_cqe cqe;
	int async; /* a job was made: it completes later */
};

/* ---- the end of a session ---- */

/* Stop taking entries, give up what can be given up.  The rest drains; lane.c says SESSION_GONE. */
void session_drain(struct lane *lane, struct session *s, uint16_t reason)
{
	struct skvc_abi_header *h = (struct skvc_abi_header *)s->segment;

	if (s->state != SESSION_OPEN)
		return;
	s->state = SESSION_DRAINING;
	s->end_reason = reason;
	job_abort_all(lane, s, reason);
	lease_release_all(lane, s);
	__atomic_store_n(&h->end_reason, reason, __ATOMIC_RELAXED);
}

/* Nothing of this session is in flight any more: only now the client may believe that its pages are its own. */
void session_closed(struct session *s)
{
	struct skvc_abi_header *h = (struct skvc_abi_header *)s->segment;

	assert(s->state == SESSION_DRAINING && !s->jobs_live);
	__atomic_store_n(&h->daemon_state, SKVC_ABI_DAEMON_CLOSED, __ATOMIC_RELEASE);
	wake_send(s->cq_fd);
}

void session_fail(struct lane *lane, struct session *s, uint16_t reason)
{
	int r;

	if (s->state != SESSION_OPEN)
		return;
	stats_reason(&lane->stats, reason);
	stats_add(&lane->stats, STAT_SESSIONS_FAILED, 1);
	session_drain(lane, s, reason);
	r = mailbox_send(
		&lane->outbox,
		&(struct mail){ .type = LANE_SESSION_FAILED, .subject = s, .value = reason });
	assert(r == 0); /* MAILBOX_ENTRIES > what all sessions together may have outstanding */
}

/* ---- checks that need the session ---- */

static void refuse(struct intake *in, int32_t res, uint16_t reason)
{
	in->cqe.res = res;
	in->cqe.reason = reason;
}

static int find_ns(struct session *s, struct intake *in)
{
	if (in->sqe.ns <= SESSION_NS_MAX)
		in->ns = s->ns[in->sqe.ns];
	if (!in->ns)
		refuse(in, -EINVAL, SKVC_ABI_REASON_BAD_NAMESPACE);
	return in->ns != NULL;
}

/* What a handle names, unless it is on its way out. */
static struct region *region_at(const struct session *s, uint32_t handle)
{
	struct region *r = handle <= SESSION_REGIONS_MAX ? s->region[handle] : NULL;

	return r && !r->closing ? r : NULL;
}

static int find_event(const struct session *s, struct intake *in, uint32_t handle,
		      struct region **ret_event)
{
	struct region *r = region_at(s, handle);

	if (!handle)
		return 1;
	/* Events are the GPU's: pages in host memory have nothing to wait for. */
	if (!r || !r->event || !in->regions.pages->device ||
	    r->device != in->regions.pages->device) {
		refuse(in, -ESTALE, SKVC_ABI_REASON_BAD_EVENT);
		return 0;
	}
	*ret_event = r;
	return 1;
}

/* The pages, and the events around the work on them. */
static int find_regions(const struct lane *lane, const struct session *s, struct intake *in)
{
	struct region *pages = region_at(s, in->sqe.region);
	uint32_t finished = skvc_abi_done_event(in->sqe.arg);

	if (!pages || !pages->ns || (in->ns && pages->ns != in->ns)) {
		refuse(in, -ESTALE, SKVC_ABI_REASON_BAD_REGION);
		return 0;
	}
	in->regions.pages = pages;
	if (gpu_refuses(lane, pages)) {
		refuse(in, -EIO, SKVC_ABI_REASON_DEVICE_GONE);
		return 0;
	}
	return find_event(s, in, skvc_abi_ready_event(in->sqe.arg), &in->regions.ready) &&
	       find_event(s, in, finished, &in->regions.finished);
}

static int pages_inside(struct intake *in)
{
	for (uint32_t i = 0; i < in->sqe.count; i++) {
		if (in->pages[i] >= in->regions.pages->dev.blocks_count) {
			refuse(in, -EINVAL, SKVC_ABI_REASON_BAD_BLOCK);
			return 0;
		}
	}
	return 1;
}

/* Copy the argument list out and check it.  NONE, or why the entry is malformed. */
static uint16_t take_args(struct lane *lane, struct session *s, struct intake *in)
{
	const struct skvc_abi_sqe *sqe = &in->sqe;
	uint32_t block_tokens = in->ns ? in->ns->geom.block_tokens : 0;
	struct sqe_args a;
	uint16_t reason = sqe_check_args(sqe, block_tokens, s->layout.args_bytes, &a);

	if (reason)
		return reason;
	memcpy(lane->scratch, s->segment + s->layout.args_off + sqe->args_rel, a.total_bytes);
	__asm__ volatile("" : : "r"(lane->scratch) : "memory"); /* never fetched again */
	if (sqe->flags & SKVC_ABI_SQE_PARENT)
		in->parent = (const struct skvc_abi_key *)lane->scratch;
	in->keys = (const struct skvc_abi_key *)(lane->scratch + a.keys_off);
	in->pages = (const uint32_t *)(lane->scratch + a.blocks_off);
	if (a.tokens_count)
		in->tokens = (const uint32_t *)(lane->scratch + a.tokens_off);
	if (in->parent)
		reason = sqe_check_key(in->parent);
	for (uint32_t i = 0; !reason && i < a.keys_count; i++)
		reason = sqe_check_key(&in->keys[i]);
	return reason;
}

/* ---- one handler per operation; shapes are right when they run ---- */

static void do_lookup(struct lane *lane, struct session *s, struct intake *in)
{
	lookup_run(lane, s, in->ns, &in->sqe, in->parent, in->keys, in->tokens, &in->cqe);
	atomic_fetch_add_explicit(&s->lookup_blocks, in->sqe.count, memory_order_relaxed);
	stats_record_ns(&lane->stats, STATS_HIST_LOOKUP, clock_now_ns() - lane->now_ns);
}

static void do_load(struct lane *lane, struct session *s, struct intake *in)
{
	if (find_regions(lane, s, in) && pages_inside(in))
		load_begin(lane, s, &in->regions, &in->sqe, in->pages, &in->cqe, &in->async);
}

static void do_store(struct lane *lane, struct session *s, struct intake *in)
{
	if (find_regions(lane, s, in) && pages_inside(in))
		store_begin(lane, s, in->ns, &in->regions, &in->sqe, in->parent, in->keys,
			    in->pages, in->tokens, &in->cqe, &in->async);
}

static void do_release(struct lane *lane, struct session *s, struct intake *in)
{
	struct lease *l = lease_find(lane, s, in->sqe.lease);

	if (l)
		lease_release(lane, l);
	else
		refuse(in, -ESTALE, SKVC_ABI_REASON_LEASE_GONE);
}

static void do_abort(struct lane *lane, struct session *s, struct intake *in)
{
	if (job_abort(lane, s, in->sqe.arg, SKVC_ABI_REASON_ABORTED) < 0)
		refuse(in, -ESTALE, SKVC_ABI_REASON_NO_SUCH_JOB);
}

static void dispatch(struct lane *lane, struct session *s, struct intake *in)
{
	switch (in->sqe.opcode) {
	case SKVC_ABI_OP_NOP:
		break;
	case SKVC_ABI_OP_LOOKUP:
		do_lookup(lane, s, in);
		break;
	case SKVC_ABI_OP_LOAD:
		do_load(lane, s, in);
		break;
	case SKVC_ABI_OP_STORE:
		do_store(lane, s, in);
		break;
	case SKVC_ABI_OP_RELEASE:
		do_release(lane, s, in);
		break;
	case SKVC_ABI_OP_TOUCH:
		lookup_touch(lane, in->ns, in->keys, in->sqe.count, &in->cqe);
		break;
	case SKVC_ABI_OP_DROP:
		lookup_drop(lane, in->ns, in->keys, in->sqe.count, &in->cqe);
		break;
	case SKVC_ABI_OP_PIN:
		lookup_pin(lane, in->ns, in->keys, in->sqe.count, in->sqe.arg, &in->cqe);
		break;
	case SKVC_ABI_OP_ABORT:
		do_abort(lane, s, in);
		break;
	default:
		assert(!"sqe_check() lets no other opcode through");
	}
}

/* ---- one entry ---- */

/* A reason that only a broken client can cause, against one that any client may meet. */
static int malformed(uint16_t reason)
{
	switch (reason) {
	case SKVC_ABI_REASON_BAD_OPCODE:
	case SKVC_ABI_REASON_BAD_FLAGS:
	case SKVC_ABI_REASON_BAD_RESERVED:
	case SKVC_ABI_REASON_BAD_COUNT:
	case SKVC_ABI_REASON_BAD_ARGS:
	case SKVC_ABI_REASON_BAD_RESULT:
	case SKVC_ABI_REASON_BAD_KEY:
		return 1;
	default:
		return 0;
	}
}

static int has_ns(uint8_t opcode)
{
	return opcode == SKVC_ABI_OP_LOOKUP || opcode == SKVC_ABI_OP_STORE ||
	       opcode == SKVC_ABI_OP_TOUCH || opcode == SKVC_ABI_OP_DROP ||
	       opcode == SKVC_ABI_OP_PIN;
}

static int has_args(uint8_t opcode)
{
	return has_ns(opcode) || opcode == SKVC_ABI_OP_LOAD;
}

/* Returns NONE, or the reason for which the session must end. */
static uint16_t take_entry(struct lane *lane, struct session *s, struct intake *in)
{
	uint16_t reason = sqe_check(&in->sqe, s->layout.args_bytes);

	if (malformed(reason))
		return reason;
	in->cqe.user_data = in->sqe.user_data;
	s->cq_reserved += INTAKE_CQES_PER_JOB;
	if (reason) {
		refuse(in, -EINVAL, reason);
	} else if (!has_ns(in->sqe.opcode) || find_ns(s, in)) {
		reason = has_args(in->sqe.opcode) ? take_args(lane, s, in) : SKVC_ABI_REASON_NONE;
		if (reason) {
			s->cq_reserved -= INTAKE_CQES_PER_JOB;
			return reason;
		}
		dispatch(lane, s, in);
	}
	if (in->async)
		return SKVC_ABI_REASON_NONE;
	s->cq_reserved -= INTAKE_CQES_PER_JOB - 1;
	in->cqe.elapsed_ns = clock_now_ns() - lane->now_ns;
	request_cqe(lane, s, &in->cqe);
	return SKVC_ABI_REASON_NONE;
}

unsigned intake_run(struct lane *lane, struct session *s)
{
	unsigned taken = 0, blocks = 0;
	uint16_t reason = SKVC_ABI_REASON_NONE;
	int ready, room;

	s->cq_blocked = 0;
	if (s->state != SESSION_OPEN)
		return 0;
	ready = ring_consume_ready(&s->sq);
	if (ready < 0) {
		session_fail(lane, s, SKVC_ABI_REASON_RING_OVERRUN);
		return 1;
	}
	while (taken < (unsigned)ready && taken < LANE_INTAKE_BATCH && blocks < INTAKE_BLOCKS &&
	       !reason) {
		struct intake in = { 0 };

		room = ring_produce_has(&s->cq, s->cq_reserved + INTAKE_CQES_PER_JOB);
		if (room < 0) {
			reason = SKVC_ABI_REASON_RING_OVERRUN;
			break;
		}
		if (!room) {
			s->cq_blocked = 1; /* it does not read: it is not served */
			break;
		}
		ring_consume(&s->sq, &in.sqe);
		taken++;
		reason = take_entry(lane, s, &in);
		blocks += in.sqe.count;
	}
	if (taken) {
		ring_consume_done(&s->sq);
		stats_add(&lane->stats, STAT_OPS, taken);
		atomic_fetch_add_explicit(&s->ops, taken, memory_order_relaxed);
	}
	if (reason)
		session_fail(lane, s, reason);
	return taken;
}
