/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_intake.c - how much is taken of one session in a turn.  No thread: the rings, an empty index, and as much of a
 * lane as touching needs.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/lane_state.h"
#include "ipc/segment.h"
#include "ipc/wake.h"

#define KEYS (SKVC_ABI_BLOCKS_MAX)

static struct lane *lane;
static struct session s;
static struct namespace ns;
static struct ring sq, cq; /* the client's */
static int wake_fd;

static int start(void **state)
{
	struct skvc_abi_header *h;
	void *base;
	int fd;

	(void)state;
	lane = aligned_alloc(64, (sizeof(*lane) + 63) & ~63ul);
	assert_non_null(lane);
	memset(lane, 0, sizeof(*lane));
	memset(&s, 0, sizeof(s));
	lane->scratch = malloc(SKVC_ABI_ARGS_BYTES_MAX);
	assert_non_null(lane->scratch);
	assert_int_equal(index_new(16, &lane->index), 0);
	assert_int_equal(segment_layout(64, 4, 1u << 20, &s.layout), 0);
	s.segment_bytes = s.layout.segment_bytes;
	assert_int_equal(segment_create("intake", s.segment_bytes, &fd), 0);
	assert_int_equal(segment_map(fd, s.segment_bytes, &base), 0);
	(void)close(fd);
	s.segment = base;
	h = base;
	*h = s.layout;
	s.sq_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	assert_int_equal(wake_pair(&s.cq_fd, &wake_fd), 0);
	ring_init(&sq, s.segment + h->sq_off, h->sq_entries, &h->sq_tail, &h->sq_head);
	ring_init(&cq, s.segment + h->cq_off, h->cq_entries, &h->cq_head, &h->cq_tail);
	ring_init(&s.sq, s.segment + h->sq_off, h->sq_entries, &h->sq_head, &h->sq_tail);
	ring_init(&s.cq, s.segment + h->cq_off, h->cq_entries, &h->cq_tail, &h->cq_head);
	ns.geom.block_tokens = 16;
	s.ns[1] = &ns;
	return 0;
}

static int stop(void **state)
{
	(void)state;
	segment_unmap(s.segment, s.segment_bytes);
	(void)close(s.sq_fd);
	(void)close(s.cq_fd);
	(void)close(wake_fd);
	index_free(lane->index);
	free(lane->scratch);
	free(lane);
	return 0;
}

static void submit(uint8_t opcode, uint32_t keys, uint64_t user_data)
{
	uint8_t *args = s.segment + s.layout.args_off;
	struct skvc_abi_sqe sqe = { .opcode = opcode, .user_data = user_data };

	for (uint32_t i = 0; i < keys; i++) {
		struct skvc_abi_key key = { .len = 16 };

		memcpy(key.bytes, &i, sizeof(i));
		memcpy(args + i * sizeof(key), &key, sizeof(key));
	}
	if (keys) {
		sqe.ns = 1;
		sqe.count = keys;
		sqe.args_bytes = keys * (uint32_t)sizeof(struct skvc_abi_key);
	}
	ring_produce(&sq, &sqe);
	(void)ring_publish(&sq);
}

static uint64_t next_completion(void)
{
	struct skvc_abi_cqe cqe;

	assert_true(ring_consume_ready(&cq) > 0);
	ring_consume(&cq, &cqe);
	ring_consume_done(&cq);
	assert_int_equal(cqe.res, 0);
	return cqe.user_data;
}

/* Or everybody else would wait for all of it. */
static void long_lists_are_taken_one_by_one(void **state)
{
	(void)state;
	for (uint64_t i = 0; i < 10; i++)
		submit(SKVC_ABI_OP_TOUCH, KEYS, i);
	for (uint64_t i = 0; i < 10; i++) {
		assert_int_equal(intake_run(lane, &s), 1);
		assert_int_equal(next_completion(), i);
		assert_int_equal(ring_consume_ready(&cq), 0);
	}
	assert_int_equal(intake_run(lane, &s), 0);
}

/* What comes before a long one does not keep it waiting. */
static void short_ones_come_along(void **state)
{
	(void)state;
	for (uint64_t i = 0; i < 8; i++)
		submit(SKVC_ABI_OP_TOUCH, 10, i);
	submit(SKVC_ABI_OP_TOUCH, KEYS, 8);
	submit(SKVC_ABI_OP_NOP, 0, 9);
	assert_int_equal(intake_run(lane, &s), 9);
	assert_int_equal(intake_run(lane, &s), 1);
	for (uint64_t i = 0; i < 10; i++)
		assert_int_equal(next_completion(), i);
}

static void many_short_ones_are_a_batch(void **state)
{
	(void)state;
	for (uint64_t i = 0; i < 40; i++)
		submit(SKVC_ABI_OP_NOP, 0, i);
	assert_int_equal(intake_run(lane, &s), LANE_INTAKE_BATCH);
	assert_int_equal(intake_run(lane, &s), 40 - LANE_INTAKE_BATCH);
	for (uint64_t i = 0; i < 40; i++)
		assert_int_equal(next_completion(), i);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(long_lists_are_taken_one_by_one, start, stop),
		cmocka_unit_test_setup_teardown(short_ones_come_along, start, stop),
		cmocka_unit_test_setup_teardown(many_short_ones_are_a_batch, start, stop),
	};

	return cmocka_run_group_tests_name("intake", tests, NULL, NULL);
}
