/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_hostile.c - clients that break the rules: garbage in the ring, impossible indices, half, oversize and
 * wrong messages, foreign handles, other versions, deaf ears.  Each loses its session with a reason that is
 * counted; the daemon lives, and an honest client beside them notices nothing.
 */
#include "tests/lib/e2e.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "tests/lib/raw_client.h"

#define END_MS (2000 * (int)E2E_SLOW)

static struct private_daemon daemon_;
static struct engine honest; /* its blocks must survive all that happens here */
static uint64_t seed;

static int start(void **state)
{
	static const char *const overrides[] = { "daemon.sessions_max=8",
						 "limits.sessions_per_user=8", NULL };
	struct engine_options o = { .seed = 11, .model = "honest" };
	struct skvc_completion c;
	int r = private_daemon_start(&daemon_, 0, overrides);

	(void)state;
	if (r == 0)
		r = engine_open(&honest, daemon_.socket, &o);
	return r == 0 ? engine_store(&honest, 1, 0, 16, &c) : r;
}

static int stop(void **state)
{
	(void)state;
	engine_close(&honest);
	return private_daemon_died(&daemon_) ? -1 : private_daemon_stop(&daemon_);
}

/* After each test: the daemon is there, only the honest session is left, and its blocks are whole. */
static int check_honest(void **state)
{
	(void)state;
	raw_client_close_all();
	if (private_daemon_died(&daemon_) || engine_fetch(&honest, 1, 16) != 16)
		return -1;
	return daemon_stats_wait(&daemon_, "sessions", 1, 1000 * E2E_SLOW) >= 0 &&
			       daemon_stats_get("jobs") == 0 && daemon_stats_get("leases") == 0
		       ? 0
		       : -1;
}

static void expect_end(struct raw_client *c, enum skvc_abi_reason reason)
{
	int got = raw_client_end_reason(c, END_MS);

	if (got != (int)reason)
		print_error("the session ended with %d, not with %d\n", got, (int)reason);
	assert_int_equal(got, reason);
	assert_int_equal(raw_client_recv(c, END_MS), 0); /* and the socket is closed */
	raw_client_close(c);
}

static uint64_t reason_count(const char *word)
{
	assert_ok(daemon_stats_read(&daemon_));
	return daemon_stats_reason(word);
}

/* ---- the ring ---- */

static void test_one_bad_entry_each(void **state)
{
	static const struct {
		struct skvc_abi_sqe sqe;
		enum skvc_abi_reason reason;
	} bad[] = {
		{ { .opcode = SKVC_ABI_OP_COUNT }, SKVC_ABI_REASON_BAD_OPCODE },
		{ { .opcode = 255 }, SKVC_ABI_REASON_BAD_OPCODE },
		{ { .opcode = SKVC_ABI_OP_NOP, .flags = 0x80 }, SKVC_ABI_REASON_BAD_FLAGS },
		{ { .opcode = SKVC_ABI_OP_NOP, .reserved0 = 1 }, SKVC_ABI_REASON_BAD_RESERVED },
		{ { .opcode = SKVC_ABI_OP_LOOKUP, .ns = 1, .count = 0 },
		  SKVC_ABI_REASON_BAD_COUNT },
		{ { .opcode = SKVC_ABI_OP_LOOKUP, .ns = 1, .count = 0xffffffff },
		  SKVC_ABI_REASON_BAD_COUNT },
		{ { .opcode = SKVC_ABI_OP_TOUCH,
		    .ns = 1,
		    .count = 1,
		    .args_rel = 0xfffffff8,
		    .args_bytes = 40 },
		  SKVC_ABI_REASON_BAD_ARGS },
		{ { .opcode = SKVC_ABI_OP_TOUCH,
		    .ns = 1,
		    .count = 1,
		    .args_rel = 0,
		    .args_bytes = 41 },
		  SKVC_ABI_REASON_BAD_ARGS },
	};

	(void)state;
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		uint64_t before = reason_count(skvc_reason_name((uint16_t)bad[i].reason));
		struct raw_client c;

		assert_ok(raw_client_open(&c, daemon_.socket, 8));
		assert_ok(raw_client_memory(&c, NULL, NULL, NULL));
		assert_ok(raw_client_submit(&c, &bad[i].sqe));
		expect_end(&c, bad[i].reason);
		assert_int_equal(reason_count(skvc_reason_name((uint16_t)bad[i].reason)),
				 before + 1);
	}
}

static void random_sqe(struct rng *r, struct skvc_abi_sqe *sqe)
{
	rng_fill(r, sqe, sizeof(*sqe));
	if (rng_one_in(r, 4))
		return;
	/* Nearly right, so that it gets past the first checks. */
	sqe->opcode %= SKVC_ABI_OP_COUNT;
	sqe->flags &= rng_one_in(r, 8) ? 0xff : SKVC_ABI_SQE_FLAGS;
	sqe->reserved0 = 0;
	sqe->ns = rng_one_in(r, 8) ? sqe->ns : 1;
	sqe->region = rng_one_in(r, 8) ? sqe->region : 1;
	sqe->count = 1 + sqe->count % 8;
	sqe->args_rel &= 0xffff8;
	sqe->result_rel = rng_one_in(r, 2) ? 0 : sqe->result_rel & 0xffff8;
	sqe->result_bytes = sqe->result_rel ? 8 : 0;
	sqe->skip_tokens %= 20;
	sqe->first %= 8;
	sqe->args_bytes = sqe->count * 40;
	if (sqe->opcode == SKVC_ABI_OP_STORE)
		sqe->args_bytes += sqe->count * 4;
	else if (sqe->opcode == SKVC_ABI_OP_LOAD)
		sqe->args_bytes = sqe->count * 4;
	if (sqe->flags & SKVC_ABI_SQE_PARENT)
		sqe->args_bytes += 40;
	if (sqe->flags & SKVC_ABI_SQE_TOKENS)
		sqe->args_bytes += sqe->count * 64;
	if (rng_one_in(r, 2))
		sqe->flags = 0;
	if (rng_one_in(r, 2))
		sqe->lease = sqe->skip_tokens = sqe->first = 0, sqe->arg = 0;
}

/* Key lists that are right more often than chance would have it. */
static void random_args(struct raw_client *c, struct rng *r)
{
	uint8_t *args = c->segment + c->layout.args_off;

	for (unsigned i = 0; i < 64; i++) {
		struct skvc_abi_key key = { .len = 32, .group = rng_below(r, 2) };
		uint32_t at = rng_below(r, (uint32_t)c->layout.args_bytes - 4096) & ~7u;

		rng_fill(r, key.bytes, 2);
		if (rng_one_in(r, 4))
			rng_fill(r, &key, sizeof(key));
		for (unsigned k = 0; k < 16; k++)
			memcpy(args + at + k * sizeof(key), &key, sizeof(key));
	}
}

static void test_random_entries(void **state)
{
	struct rng r;
	unsigned ended = 0;

	(void)state;
	rng_init(&r, seed);
	for (unsigned i = 0; i < 300 / E2E_SLOW; i++) {
		struct skvc_abi_sqe sqe;
		struct raw_client c;

		assert_ok(raw_client_open(&c, daemon_.socket, 64));
		assert_ok(raw_client_memory(&c, NULL, NULL, NULL));
		random_args(&c, &r);
		for (unsigned n = 0; n < 64; n++) {
			random_sqe(&r, &sqe);
			(void)raw_client_submit(&c, &sqe);
		}
		raw_client_wake(&c);
		ended += raw_client_end_reason(&c, 5) >= 0;
		if (rng_one_in(&r, 2)) /* scribble while it still works */
			rng_fill(&r, c.segment + c.layout.sq_off, 64 * 64);
		raw_client_close(&c);
		assert_false(private_daemon_died(&daemon_));
	}
	assert_true(ended > 0);
}

/* Sessions that were closed a moment ago still have their places, on a busy machine all of them. */
static int open_in_time(struct raw_client *c)
{
	uint64_t until = private_daemon_now_ns() + (uint64_t)END_MS * 1000000;
	int r;

	while ((r = raw_client_open(c, daemon_.socket, 32)) < 0) {
		if (c->answer.h.type != CTL_ERROR ||
		    c->answer.error.reason != SKVC_ABI_REASON_SESSIONS_FULL ||
		    private_daemon_now_ns() >= until)
			return r;
		raw_client_close(c);
		(void)poll(NULL, 0, 1);
	}
	return 0;
}

/* Everything in the segment is the client's to overwrite: indices, headers, lease words, both rings. */
static void test_random_segment(void **state)
{
	struct rng r;

	(void)state;
	rng_init(&r, seed + 1);
	for (unsigned i = 0; i < 100 / E2E_SLOW; i++) {
		struct raw_client c;

		assert_ok(open_in_time(&c));
		for (unsigned n = 0; n < 20; n++) {
			uint64_t at = rng_below(&r, (uint32_t)(c.segment_bytes - 64));

			if (rng_one_in(&r, 2))
				at = rng_below(&r, sizeof(struct skvc_abi_header) - 8);
			rng_fill(&r, c.segment + at, 1 + rng_below(&r, 8));
			if (rng_one_in(&r, 4))
				raw_client_wake(&c);
		}
		raw_client_wake(&c);
		raw_client_close(&c);
		assert_false(private_daemon_died(&daemon_));
	}
}

static void test_index_overrun(void **state)
{
	static const uint32_t ahead[] = { 9, 0x80000000, 0xffffffff };

	(void)state;
	for (unsigned i = 0; i < sizeof(ahead) / sizeof(ahead[0]); i++) {
		struct skvc_abi_header *h;
		struct raw_client c;

		assert_ok(raw_client_open(&c, daemon_.socket, 8));
		h = (struct skvc_abi_header *)c.segment;
		__atomic_store_n(&h->sq_tail.value, ahead[i], __ATOMIC_RELEASE);
		raw_client_wake(&c);
		expect_end(&c, SKVC_ABI_REASON_RING_OVERRUN);
	}
}

static void test_completion_index_overrun(void **state)
{
	struct skvc_abi_sqe nop = { .opcode = SKVC_ABI_OP_NOP };
	struct skvc_abi_header *h;
	struct raw_client c;

	(void)state;
	assert_ok(raw_client_open(&c, daemon_.socket, 8));
	h = (struct skvc_abi_header *)c.segment;
	__atomic_store_n(&h->cq_head.value, 0x40000000, __ATOMIC_RELEASE);
	/* The lane looks at this index when what it last saw is used up: after a ring full of completions. */
	for (unsigned i = 0; i < 4 * c.layout.cq_entries; i++) {
		if (raw_client_submit(&c, &nop) < 0)
			private_daemon_sleep_ms(1);
		raw_client_wake(&c);
	}
	expect_end(&c, SKVC_ABI_REASON_RING_OVERRUN);
}

/* Does not read its completions: it is not served any more, and nothing else happens. */
static void test_a_client_that_does_not_read(void **state)
{
	struct skvc_abi_sqe nop = { .opcode = SKVC_ABI_OP_NOP };
	uint64_t submitted = 0, until;
	struct skvc_abi_cqe cqe;
	struct raw_client c;

	(void)state;
	assert_ok(raw_client_open(&c, daemon_.socket, 8));
	until = private_daemon_now_ns() + 300000000ull;
	while (private_daemon_now_ns() < until) {
		nop.user_data = submitted;
		if (raw_client_submit(&c, &nop) == 0)
			submitted++;
	}
	assert_true(submitted >= c.layout.cq_entries / 2 &&
		    submitted <= c.layout.cq_entries + c.layout.sq_entries);
	assert_int_equal(engine_fetch(&honest, 1, 16), 16);
	for (uint64_t i = 0; i < submitted; i++) { /* then it reads, and all are there, in order */
		assert_ok(raw_client_complete(&c, &cqe, END_MS));
		assert_int_equal(cqe.user_data, i);
		assert_ok(cqe.res);
	}
	assert_res(raw_client_complete(&c, &cqe, 20), -ETIMEDOUT);
	raw_client_close(&c);
}

/* The lane answers somebody else. */
static void expect_answers(struct raw_client *c)
{
	const struct skvc_abi_sqe nop = { .opcode = SKVC_ABI_OP_NOP };
	struct skvc_abi_cqe cqe;

	assert_ok(raw_client_submit(c, &nop));
	assert_ok(raw_client_complete(c, &cqe, END_MS));
}

/*
 * O_NONBLOCK belongs to an open file, and whoever was sent a descriptor has that file.  A client that makes its
 * wake-ups block, and fills what the daemon writes to, must not stop the lane.
 */
static void test_a_wake_up_that_blocks(void **state)
{
	const uint64_t most = UINT64_MAX - 1;
	struct raw_client c, other;

	(void)state;
	assert_ok(raw_client_open(&other, daemon_.socket, 8));
	assert_ok(raw_client_open(&c, daemon_.socket, 8));
	(void)fcntl(c.cq_fd, F_SETFL, 0);
	(void)!write(c.cq_fd, &most, sizeof(most));
	for (unsigned i = 0; i < 8; i++) {
		const struct skvc_abi_sqe nop = { .opcode = SKVC_ABI_OP_NOP };
		struct skvc_abi_cqe cqe;

		(void)ring_arm(&c.cq);
		assert_ok(raw_client_submit(&c, &nop));
		assert_ok(raw_client_complete(&c, &cqe, END_MS));
		expect_answers(&other);
	}
	/* Nor that its end is said to nobody, which writes there once more. */
	assert_ok(raw_client_submit(&c, &(struct skvc_abi_sqe){ .opcode = 255 }));
	expect_end(&c, SKVC_ABI_REASON_BAD_OPCODE);
	expect_answers(&other);
	raw_client_close(&other);
}

/* The same in the other direction: it wakes the lane, and takes away what that would read. */
static void test_a_wake_up_that_is_gone(void **state)
{
	struct raw_client c, other;
	uint64_t value;
	struct iovec iov = { .iov_base = &value, .iov_len = sizeof(value) };

	(void)state;
	assert_ok(raw_client_open(&other, daemon_.socket, 8));
	assert_ok(raw_client_open(&c, daemon_.socket, 8));
	(void)fcntl(c.sq_fd, F_SETFL, 0);
	for (unsigned i = 0; i < 200; i++) {
		raw_client_wake(&c);
		(void)!preadv2(c.sq_fd, &iov, 1, -1, RWF_NOWAIT);
		expect_answers(&other);
	}
	raw_client_close(&c);
	expect_answers(&other);
	raw_client_close(&other);
}

static void test_user_data_in_use(void **state)
{
	struct skvc_abi_sqe sqe = { .opcode = SKVC_ABI_OP_STORE, .count = 8, .user_data = 5 };
	struct skvc_abi_cqe cqe;
	struct raw_client c;
	int done = 0;

	(void)state;
	assert_ok(raw_client_open(&c, daemon_.socket, 64));
	assert_ok(raw_client_memory(&c, &sqe.ns, &sqe.region, NULL));
	for (uint32_t i = 0; i < 8; i++) {
		struct skvc_abi_key key = { .len = 16, .bytes = { 1, (uint8_t)i } };
		uint8_t *args = c.segment + c.layout.args_off;

		memcpy(args + i * sizeof(key), &key, sizeof(key));
		memcpy(args + 8 * sizeof(key) + (size_t)i * 4, &i, 4);
	}
	sqe.args_bytes = 8 * 44;
	for (unsigned i = 0; i < 4; i++)
		assert_ok(raw_client_submit(&c, &sqe));
	while (done < 4) {
		assert_ok(raw_client_complete(&c, &cqe, END_MS));
		if (cqe.kind == SKVC_ABI_CQE_SOURCE_FREE)
			continue;
		done++;
	}
	raw_client_close(&c);
}

static void test_foreign_handles(void **state)
{
	struct skvc_abi_sqe sqe = { .opcode = SKVC_ABI_OP_LOAD, .count = 1, .args_bytes = 8 };
	struct skvc_completion lease;
	struct skvc_abi_cqe cqe;
	struct raw_client c;
	uint32_t ns, region;

	(void)state;
	assert_ok(engine_lookup(&honest, 1, 16, &lease));
	assert_ok(raw_client_open(&c, daemon_.socket, 8));
	assert_ok(raw_client_memory(&c, &ns, &region, NULL));
	memset(c.segment + c.layout.args_off, 0, 4096);
	/* Another namespace's lease into our region; a lease that never was; regions that are not ours. */
	for (unsigned i = 0; i < 4; i++) {
		static const uint32_t regions[] = { 0, 0, 99, 0xffffffff };

		sqe.lease = i == 1 ? 0x1234567800000003u : lease.lease;
		sqe.region = i < 2 ? region : regions[i];
		sqe.args_bytes = 4;
		assert_ok(raw_client_submit(&c, &sqe));
		assert_ok(raw_client_complete(&c, &cqe, END_MS));
		assert_res(cqe.res, -ESTALE);
	}
	sqe = (struct skvc_abi_sqe){ .opcode = SKVC_ABI_OP_ABORT, .arg = 77, .user_data = 1 };
	assert_ok(raw_client_submit(&c, &sqe));
	assert_ok(raw_client_complete(&c, &cqe, END_MS));
	assert_res(cqe.res, -ESTALE);
	assert_int_equal(cqe.reason, SKVC_ABI_REASON_NO_SUCH_JOB);
	raw_client_close(&c);
	assert_ok(engine_release(&honest, lease.lease));
}

static void test_page_outside_the_region(void **state)
{
	struct skvc_abi_sqe sqe = { .opcode = SKVC_ABI_OP_STORE, .count = 1, .args_bytes = 44 };
	struct skvc_abi_key key = { .len = 16, .bytes = { 9 } };
	static const uint32_t pages[] = { 64, 0x80000000, 0xffffffff };
	struct skvc_abi_cqe cqe;
	struct raw_client c;

	(void)state;
	assert_ok(raw_client_open(&c, daemon_.socket, 8));
	assert_ok(raw_client_memory(&c, &sqe.ns, &sqe.region, NULL));
	memcpy(c.segment + c.layout.args_off, &key, sizeof(key));
	for (unsigned i = 0; i < sizeof(pages) / sizeof(pages[0]); i++) {
		memcpy(c.segment + c.layout.args_off + sizeof(key), &pages[i], 4);
		assert_ok(raw_client_submit(&c, &sqe));
		assert_ok(raw_client_complete(&c, &cqe, END_MS));
		assert_res(cqe.res, -EINVAL);
		assert_int_equal(cqe.reason, SKVC_ABI_REASON_BAD_BLOCK);
	}
	raw_client_close(&c);
}

/* The source changes while it is stored: whatever is kept is restored exactly or not at all. */
static void test_source_that_changes(void **state)
{
	struct skvc_abi_sqe sqe = { .opcode = SKVC_ABI_OP_STORE, .count = 1, .args_bytes = 44 };
	struct skvc_abi_key key = { .len = 16, .bytes = { 7 } };
	struct skvc_abi_cqe cqe;
	struct raw_client c;
	struct rng r;
	uint8_t *arena;

	(void)state;
	rng_init(&r, seed);
	assert_ok(raw_client_open(&c, daemon_.socket, 8));
	assert_ok(raw_client_memory(&c, &sqe.ns, &sqe.region, &arena));
	for (uint32_t i = 0; i < 200; i++) {
		uint32_t page = 0;

		key.bytes[1] = (uint8_t)i;
		memcpy(c.segment + c.layout.args_off, &key, sizeof(key));
		memcpy(c.segment + c.layout.args_off + sizeof(key), &page, 4);
		assert_ok(raw_client_submit(&c, &sqe));
		do {
			int got;

			rng_fill(&r, arena, 1024);
			got = raw_client_complete(&c, &cqe, 0);
			assert_true(got == 0 || got == -ETIMEDOUT);
			if (got == 0 && cqe.kind == SKVC_ABI_CQE_DONE)
				break;
		} while (1);
		assert_ok(cqe.res);
	}
	assert_int_equal(munmap(arena, 64u << 10), 0);
	raw_client_close(&c);
}

/* ---- the control socket ---- */

static void expect_refusal(struct raw_client *c, int answer, enum skvc_abi_reason reason)
{
	assert_int_equal(answer, CTL_ERROR);
	assert_int_equal(c->answer.error.reason, reason);
	assert_true(c->answer.error.res < 0);
	assert_true(strnlen((char *)c->answer.error.text, CTL_TEXT_BYTES) < CTL_TEXT_BYTES);
	print_message("refused: %s\n", (char *)c->answer.error.text);
}

static void test_version_skew(void **state)
{
	static const struct {
		uint16_t major, minor, major_min, minor_min;
	} skewed[] = { { SKVC_ABI_MAJOR + 1, 0, SKVC_ABI_MAJOR + 1, 0 },
		       { SKVC_ABI_MAJOR, SKVC_ABI_MINOR, SKVC_ABI_MAJOR, SKVC_ABI_MINOR + 1 },
		       { 0, 9, 0, 0 },
		       { 0xffff, 0xffff, 0xffff, 0xffff } };

	(void)state;
	for (unsigned i = 0; i < sizeof(skewed) / sizeof(skewed[0]); i++) {
		struct ctl_hello hello = raw_client_hello(8);
		struct raw_client c;

		hello.abi_major = skewed[i].major;
		hello.abi_minor = skewed[i].minor;
		hello.abi_major_min = skewed[i].major_min;
		hello.abi_minor_min = skewed[i].minor_min;
		assert_ok(raw_client_connect(&c, daemon_.socket));
		expect_refusal(&c, raw_client_request(&c, &hello, CTL_HELLO, sizeof(hello)),
			       SKVC_ABI_REASON_VERSION);
		assert_int_equal(c.answer.error.abi_major, SKVC_ABI_MAJOR);
		assert_int_equal(c.answer.error.abi_minor, SKVC_ABI_MINOR);
		assert_int_equal(raw_client_recv(&c, END_MS), 0);
		raw_client_close(&c);
	}
	{ /* A newer minor that accepts ours is welcome. */
		struct ctl_hello hello = raw_client_hello(8);
		struct raw_client c;

		hello.abi_minor = SKVC_ABI_MINOR + 7;
		assert_ok(raw_client_connect(&c, daemon_.socket));
		assert_int_equal(raw_client_request(&c, &hello, CTL_HELLO, sizeof(hello)),
				 CTL_WELCOME);
		raw_client_close(&c);
	}
}

/* Said something wrong: refused with a text or not, the socket is closed soon. */
static void expect_closed(struct raw_client *c)
{
	int r = raw_client_recv(c, END_MS);

	if (r > 0) {
		assert_int_equal(c->answer.h.type, CTL_ERROR);
		r = raw_client_recv(c, END_MS);
	}
	assert_int_equal(r, 0);
	raw_client_close(c);
}

static void test_malformed_messages(void **state)
{
	struct ctl_hello hello = raw_client_hello(8);
	uint8_t big[CTL_MSG_BYTES_MAX + 4096] = { 0 };
	struct rng r;

	(void)state;
	rng_init(&r, seed + 2);
	for (unsigned i = 0; i < 120; i++) {
		uint8_t packet[sizeof(hello)];
		size_t bytes = sizeof(hello);
		struct raw_client c;

		ctl_msg_init(&hello.h, CTL_HELLO, sizeof(hello), i);
		memcpy(packet, &hello, sizeof(hello));
		if (i < 60)
			bytes = 1 + rng_below(&r, sizeof(hello) - 1); /* half a message */
		else if (i < 90)
			packet[rng_below(&r, 12)] ^=
				(uint8_t)(1 + rng_below(&r, 255)); /* magic, type, length */
		else
			memset(packet + sizeof(struct ctl_header) + 8, 0xff, 16); /* role, sizes */
		assert_ok(raw_client_connect(&c, daemon_.socket));
		assert_ok(raw_client_send(&c, packet, bytes, NULL, 0));
		expect_closed(&c);
	}
	for (unsigned i = 0; i < 3; i++) {
		struct raw_client c;

		/* Larger than any message: as the first one, and in the middle of a session. */
		if (i == 0)
			assert_ok(raw_client_connect(&c, daemon_.socket));
		else
			assert_ok(raw_client_open(&c, daemon_.socket, 8));
		ctl_msg_init((struct ctl_header *)big, CTL_NS_OPEN, sizeof(big), 1);
		assert_ok(raw_client_send(&c, big, i == 2 ? CTL_MSG_BYTES_MAX + 1 : sizeof(big),
					  NULL, 0));
		expect_closed(&c);
	}
}

static void test_requests_out_of_place(void **state)
{
	struct ctl_arena_new arena = { .bytes = 4096 };
	struct ctl_hello hello = raw_client_hello(8);
	struct raw_client c;

	(void)state;
	assert_ok(raw_client_connect(&c, daemon_.socket)); /* before hello */
	ctl_msg_init(&arena.h, CTL_ARENA_NEW, sizeof(arena), 1);
	assert_ok(raw_client_send(&c, &arena, sizeof(arena), NULL, 0));
	expect_closed(&c);
	assert_ok(raw_client_open(&c, daemon_.socket, 8)); /* hello twice */
	ctl_msg_init(&hello.h, CTL_HELLO, sizeof(hello), 9);
	assert_ok(raw_client_send(&c, &hello, sizeof(hello), NULL, 0));
	expect_closed(&c);
	assert_ok(raw_client_open(&c, daemon_.socket, 8)); /* an answer instead of a request */
	ctl_msg_init(&hello.h, CTL_WELCOME, sizeof(hello), 9);
	assert_ok(raw_client_send(&c, &hello, sizeof(hello), NULL, 0));
	expect_closed(&c);
}

static unsigned open_fds(void)
{
	char path[64];
	unsigned n = 0;

	for (int fd = 0; fd < 1024; fd++) {
		(void)snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)daemon_.pid, fd);
		n += faccessat(AT_FDCWD, path, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
	}
	return n;
}

/* What fdpass_send() would refuse to send. */
static void send_with_fds(int sock, const void *packet, size_t bytes, const int *fds,
			  unsigned count)
{
	char control[CMSG_SPACE(253 * sizeof(int))] = { 0 };
	struct iovec iov = { (void *)packet, bytes };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = control,
			      .msg_controllen = CMSG_SPACE(count * sizeof(int)) };
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(count * sizeof(int));
	memcpy(CMSG_DATA(c), fds, count * sizeof(int));
	assert_int_equal(sendmsg(sock, &msg, MSG_NOSIGNAL), bytes);
}

/* Descriptors where none belong: closed by the daemon, all of them, whatever else is wrong. */
static void test_wrong_descriptors(void **state)
{
	struct ctl_hello hello = raw_client_hello(8);
	int fds[16];
	unsigned before;

	(void)state;
	for (unsigned i = 0; i < 16; i++) {
		fds[i] = eventfd(0, EFD_CLOEXEC);
		assert_true(fds[i] >= 0);
	}
	before = open_fds();
	for (unsigned n = 1; n <= 16; n++) {
		struct raw_client c;

		assert_ok(raw_client_connect(&c, daemon_.socket));
		ctl_msg_init(&hello.h, CTL_HELLO, sizeof(hello), n);
		send_with_fds(c.sock, &hello, sizeof(hello), fds, n);
		expect_closed(&c);
	}
	for (unsigned i = 0; i < 16; i++)
		assert_int_equal(close(fds[i]), 0);
	assert_true(daemon_stats_wait(&daemon_, "sessions", 1, 1000 * E2E_SLOW) >= 0);
	/* Connections that have just been closed may still be there for a moment. */
	for (unsigned i = 0; i < 100 && open_fds() > before; i++)
		private_daemon_sleep_ms(10);
	assert_true(open_fds() <= before);
}

/* Its last close() is the daemon's: in a message, in one that is not read, in one too many. */
static void test_descriptors_that_take_long_to_close(void **state)
{
	struct ctl_hello hello = raw_client_hello(8);
	struct raw_client c[3], other;
	int fds[3], peers[3];

	(void)state;
	ctl_msg_init(&hello.h, CTL_HELLO, sizeof(hello), 1);
	assert_ok(kill(daemon_.pid, SIGSTOP)); /* or it could have closed its own before us */
	for (unsigned i = 0; i < 3; i++) {
		int sent[200];

		fds[i] = raw_lingering_socket(&peers[i]);
		assert_true(fds[i] >= 0);
		for (unsigned k = 0; k < 200; k++)
			sent[k] = fds[i];
		assert_ok(raw_client_connect(&c[i], daemon_.socket));
		if (i == 1)
			assert_ok(raw_client_send(&c[i], &hello, sizeof(hello), NULL, 0));
		send_with_fds(c[i].sock, &hello, sizeof(hello), sent, i == 2 ? 200 : 1);
		(void)close(fds[i]);
	}
	assert_ok(kill(daemon_.pid, SIGCONT));
	for (unsigned i = 0; i < 3; i++)
		raw_client_close(&c[i]);
	assert_ok(raw_client_open(&other, daemon_.socket, 8));
	expect_answers(&other);
	raw_client_close(&other);
	assert_ok(daemon_stats_wait(&daemon_, "sessions", 1, END_MS) < 0);
	for (unsigned i = 0; i < 3; i++)
		(void)close(peers[i]);
}

static void test_arenas_and_regions_that_cannot_be(void **state)
{
	struct ctl_arena_new huge = { .bytes = 1ull << 50 };
	struct ctl_region_host region = { .blocks_count = 65 };
	struct raw_client c;
	uint32_t ns;

	(void)state;
	assert_ok(raw_client_open(&c, daemon_.socket, 8));
	assert_ok(raw_client_memory(&c, &ns, NULL, NULL));
	assert_int_equal(raw_client_request(&c, &huge, CTL_ARENA_NEW, sizeof(huge)), CTL_ERROR);
	assert_int_equal(c.answer.error.reason, SKVC_ABI_REASON_MEMORY_LIMIT);
	region.ns = ns;
	for (unsigned i = 0; i < 4; i++) {
		region.arena = i == 1 ? 7 : 1;
		region.blocks_count = i == 0 ? 65 : i == 3 ? 0xffffffff : 1;
		region.offset = i == 2 ? 0xfffffffffffff000u : 0;
		assert_int_equal(raw_client_request(&c, &region, CTL_REGION_HOST, sizeof(region)),
				 CTL_ERROR);
		print_message("refused: %s\n", (char *)c.answer.error.text);
	}
	raw_client_close(&c);
}

static void test_more_sessions_than_allowed(void **state)
{
	struct raw_client c[8];
	struct ctl_hello hello = raw_client_hello(8);
	struct raw_client extra;
	struct skvc_session *session;

	(void)state;
	for (unsigned i = 0; i < 7; i++) /* the honest one is the eighth */
		assert_ok(raw_client_open(&c[i], daemon_.socket, 8));
	assert_ok(raw_client_connect(&extra, daemon_.socket));
	expect_refusal(&extra, raw_client_request(&extra, &hello, CTL_HELLO, sizeof(hello)),
		       SKVC_ABI_REASON_SESSIONS_FULL);
	raw_client_close(&extra);
	assert_res(skvc_open(daemon_.socket, NULL, &session), -EUSERS);
	for (unsigned i = 0; i < 7; i++)
		raw_client_close(&c[i]);
}

/* Says hello and nothing more, or not even that: neither keeps others out for long. */
static void test_silent_connections(void **state)
{
	struct raw_client c[32];
	unsigned n = 0;

	(void)state;
	while (n < 32 && raw_client_connect(&c[n], daemon_.socket) == 0)
		n++;
	assert_int_equal(engine_fetch(&honest, 1, 16), 16);
	while (n > 0)
		raw_client_close(&c[--n]);
}

#define CASE(f) cmocka_unit_test_teardown(f, check_honest)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_one_bad_entry_each),
		CASE(test_random_entries),
		CASE(test_random_segment),
		CASE(test_index_overrun),
		CASE(test_completion_index_overrun),
		CASE(test_a_client_that_does_not_read),
		CASE(test_a_wake_up_that_blocks),
		CASE(test_a_wake_up_that_is_gone),
		CASE(test_user_data_in_use),
		CASE(test_foreign_handles),
		CASE(test_page_outside_the_region),
		CASE(test_source_that_changes),
		CASE(test_version_skew),
		CASE(test_malformed_messages),
		CASE(test_requests_out_of_place),
		CASE(test_wrong_descriptors),
		CASE(test_descriptors_that_take_long_to_close),
		CASE(test_arenas_and_regions_that_cannot_be),
		CASE(test_more_sessions_than_allowed),
		CASE(test_silent_connections),
	};

	(void)signal(SIGPIPE, SIG_IGN);
	seed = rng_seed_env(1);
	return cmocka_run_group_tests_name("hostile", tests, start, stop);
}
