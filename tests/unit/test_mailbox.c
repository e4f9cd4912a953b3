/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_mailbox.c - order, fullness, and that a sleeper is woken exactly when it said that it sleeps.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>

#include <cmocka.h>

#include "daemon/mailbox.h"
#include "tests/lib/rng.h"

#ifdef SKVCD_SAN
#define STRESS_MAILS 200000u
#else
#define STRESS_MAILS 1000000u
#endif

static struct mailbox *make(void)
{
	struct mailbox *m = aligned_alloc(_Alignof(struct mailbox), sizeof(*m));

	assert_non_null(m);
	assert_int_equal(mailbox_init(m), 0);
	return m;
}

static void destroy(struct mailbox *m)
{
	mailbox_deinit(m);
	free(m);
}

static int readable(const struct mailbox *m, int timeout_ms)
{
	struct pollfd p = { .fd = m->fd, .events = POLLIN };

	return poll(&p, 1, timeout_ms);
}

static void keeps_order_and_says_when_full(void **state)
{
	struct mailbox *m = make();
	struct mail mail = { 0 };

	(void)state;
	assert_int_equal(mailbox_recv(m, &mail), 0);
	/* Three rounds, so that the indices wrap in the ring. */
	for (uint64_t round = 0; round < 3; round++) {
		for (uint64_t i = 0; i < MAILBOX_ENTRIES; i++) {
			mail = (struct mail){ .type = 1 + (uint32_t)round,
					      .res = -(int32_t)i,
					      .value = i,
					      .subject = m,
					      .object = &mail };
			assert_int_equal(mailbox_send(m, &mail), 0);
		}
		assert_int_equal(mailbox_send(m, &mail), -EAGAIN);
		for (uint64_t i = 0; i < MAILBOX_ENTRIES; i++) {
			struct mail got = { 0 };

			assert_int_equal(mailbox_recv(m, &got), 1);
			assert_int_equal(got.type, 1 + round);
			assert_int_equal(got.res, -(int32_t)i);
			assert_int_equal(got.value, i);
			assert_ptr_equal(got.subject, m);
			assert_ptr_equal(got.object, &mail);
		}
		assert_int_equal(mailbox_recv(m, &mail), 0);
	}
	destroy(m);
}

static void indices_run_over(void **state)
{
	struct mailbox *m = make();
	struct mail mail = { .type = 1 };

	(void)state;
	atomic_store(&m->tail, UINT32_MAX - 3);
	atomic_store(&m->head, UINT32_MAX - 3);
	for (uint64_t i = 0; i < MAILBOX_ENTRIES; i++) {
		mail.value = i;
		assert_int_equal(mailbox_send(m, &mail), 0);
	}
	assert_int_equal(mailbox_send(m, &mail), -EAGAIN);
	for (uint64_t i = 0; i < MAILBOX_ENTRIES; i++) {
		assert_int_equal(mailbox_recv(m, &mail), 1);
		assert_int_equal(mail.value, i);
	}
	assert_int_equal(mailbox_recv(m, &mail), 0);
	destroy(m);
}

static void writes_the_eventfd_only_for_a_sleeper(void **state)
{
	struct mailbox *m = make();
	struct mail mail = { .type = 1 };

	(void)state;
	assert_int_equal(mailbox_send(m, &mail), 0);
	assert_int_equal(readable(m, 0), 0); /* nobody sleeps */
	assert_int_equal(mailbox_arm(m), 0); /* and nobody may: there is mail */
	assert_int_equal(mailbox_recv(m, &mail), 1);
	assert_int_equal(mailbox_send(m, &mail), 0);
	assert_int_equal(readable(m, 0), 0); /* the refused arm left nothing behind */
	assert_int_equal(mailbox_recv(m, &mail), 1);

	assert_int_equal(mailbox_arm(m), 1);
	assert_int_equal(readable(m, 0), 0);
	assert_int_equal(mailbox_send(m, &mail), 0);
	assert_int_equal(readable(m, 0), 1);
	mailbox_disarm(m);
	assert_int_equal(readable(m, 0), 0); /* emptied */
	assert_int_equal(mailbox_recv(m, &mail), 1);

	assert_int_equal(mailbox_arm(m), 1);
	mailbox_disarm(m); /* woken by something else */
	assert_int_equal(mailbox_send(m, &mail), 0);
	assert_int_equal(readable(m, 0), 0);
	destroy(m);
}

struct stress {
	struct mailbox *m;
	uint64_t seed;
};

static void *producer(void *arg)
{
	const struct stress *s = arg;
	struct rng rng;

	rng_init(&rng, s->seed);
	for (uint32_t i = 0; i < STRESS_MAILS;) {
		/* Bursts and pauses, so that the consumer sleeps often and in all the wrong moments. */
		for (uint32_t n = 1 + rng_below(&rng, 8); n > 0 && i < STRESS_MAILS; n--) {
			struct mail mail = { .type = 1, .value = i, .res = (int32_t)(i ^ 0x5555) };

			if (mailbox_send(s->m, &mail) < 0)
				break;
			i++;
		}
		if (rng_one_in(&rng, 4))
			(void)sched_yield();
	}
	return NULL;
}

static void two_threads_lose_nothing(void **state)
{
	struct stress s = { .m = make(), .seed = rng_seed_env(0x6d61696c) };
	uint32_t expected = 0, sleeps = 0;
	struct mail mail;
	pthread_t thread;

	(void)state;
	assert_int_equal(pthread_create(&thread, NULL, producer, &s), 0);
	while (expected < STRESS_MAILS) {
		if (mailbox_recv(s.m, &mail)) {
			assert_int_equal(mail.value, expected);
			assert_int_equal(mail.res, (int32_t)(expected ^ 0x5555));
			expected++;
			continue;
		}
		if (mailbox_arm(s.m)) {
			/* A lost wake-up shows as a time-out here. */
			assert_int_equal(readable(s.m, 10000), 1);
			sleeps++;
		}
		mailbox_disarm(s.m);
	}
	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_int_equal(mailbox_recv(s.m, &mail), 0);
	print_message("%u mails, %u sleeps\n", expected, sleeps);
	assert_true(sleeps > 0);
	destroy(s.m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(keeps_order_and_says_when_full),
		cmocka_unit_test(indices_run_over),
		cmocka_unit_test(writes_the_eventfd_only_for_a_sleeper),
		cmocka_unit_test(two_threads_lose_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
