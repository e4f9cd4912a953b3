/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_ring.c - the ring between two threads, over the wrap of its indices; impossible indices; and that a
 * sleeping consumer is never left asleep.
 */
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cmocka.h>

#include "ipc/ring.h"

#define CAPACITY 8u

struct shared {
	struct skvc_abi_index head, tail;
	_Alignas(64) uint8_t entries[CAPACITY * RING_ENTRY_BYTES];
};

static void make_pair(struct shared *s, uint32_t start, struct ring *producer,
		      struct ring *consumer)
{
	memset(s, 0, sizeof(*s));
	s->head.value = s->tail.value = start;
	ring_init(producer, s->entries, CAPACITY, &s->tail, &s->head);
	ring_init(consumer, s->entries, CAPACITY, &s->head, &s->tail);
	producer->own_value = consumer->own_value = start;
}

static void holds_its_capacity(void **state)
{
	uint64_t entry[8] = { 0 }, back[8];
	struct ring producer, consumer;
	struct shared s;

	(void)state;
	make_pair(&s, UINT32_MAX - 3, &producer, &consumer);
	assert_int_equal(ring_produce_room(&producer), CAPACITY);
	for (uint32_t i = 0; i < CAPACITY; i++) {
		entry[0] = i;
		ring_produce(&producer, entry);
	}
	assert_int_equal(ring_consume_ready(&consumer), 0); /* nothing before it is published */
	assert_int_equal(ring_publish(&producer), 0);
	assert_int_equal(ring_produce_room(&producer), 0);
	assert_int_equal(ring_consume_ready(&consumer), CAPACITY);
	for (uint32_t i = 0; i < CAPACITY; i++) {
		ring_consume(&consumer, back);
		assert_int_equal(back[0], i);
	}
	assert_int_equal(ring_produce_room(&producer), 0); /* not given back yet */
	ring_consume_done(&consumer);
	assert_int_equal(ring_produce_room(&producer), CAPACITY);
	assert_int_equal(ring_consume_ready(&consumer), 0);
}

static void refuses_impossible_indices(void **state)
{
	static const uint32_t lies[] = { CAPACITY + 1, 1000, 0x80000000u, UINT32_MAX };
	struct ring producer, consumer;
	struct shared s;

	(void)state;
	for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
		make_pair(&s, 0, &producer, &consumer);
		s.tail.value = lies[i];
		assert_int_equal(ring_consume_ready(&consumer), -EOVERFLOW);
		assert_int_equal(consumer.peer_value, 0);
		make_pair(&s, 0, &producer, &consumer);
		s.head.value = lies[i]; /* consumed what was never there */
		assert_int_equal(ring_produce_room(&producer),
				 lies[i] == UINT32_MAX ? 7 : -EOVERFLOW);
	}
	make_pair(&s, 0, &producer, &consumer);
	s.head.value = 1;
	assert_int_equal(ring_produce_room(&producer), -EOVERFLOW);
}

static void looks_at_the_consumer_only_when_it_must(void **state)
{
	uint64_t entry[8] = { 0 };
	struct ring producer, consumer;
	struct shared s;

	(void)state;
	make_pair(&s, UINT32_MAX - 3, &producer, &consumer);
	producer.peer_value = UINT32_MAX - 3;
	s.head.value =
		1000; /* impossible, and not looked at: all slots were free at the last look */
	assert_int_equal(ring_produce_has(&producer, CAPACITY), 1);
	for (uint32_t i = 0; i < CAPACITY; i++)
		ring_produce(&producer, entry);
	assert_int_equal(ring_produce_has(&producer, 1), -EOVERFLOW);
	s.head.value = UINT32_MAX - 3;
	assert_int_equal(ring_produce_has(&producer, 1), 0);
	s.head.value = 0; /* four were taken */
	assert_int_equal(ring_produce_has(&producer, 5), 0);
	assert_int_equal(ring_produce_has(&producer, 4), 1);
}

static void wakes_once_per_sleep(void **state)
{
	uint64_t entry[8] = { 0 };
	struct ring producer, consumer;
	struct shared s;

	(void)state;
	make_pair(&s, 0, &producer, &consumer);
	assert_int_equal(ring_arm(&consumer), 1);
	ring_produce(&producer, entry);
	assert_int_equal(ring_publish(&producer), 1);
	ring_produce(&producer, entry);
	assert_int_equal(ring_publish(&producer), 0);
	assert_int_equal(ring_arm(&consumer), 0); /* entries are there: no sleep, and disarmed */
	ring_produce(&producer, entry);
	assert_int_equal(ring_publish(&producer), 0);
	assert_int_equal(ring_consume_ready(&consumer), 3);
	for (int i = 0; i < 3; i++)
		ring_consume(&consumer, entry);
	ring_consume_done(&consumer);
	assert_int_equal(ring_arm(&consumer), 1);
	ring_disarm(&consumer);
	ring_produce(&producer, entry);
	assert_int_equal(ring_publish(&producer), 0);
}

#define ROUNDS 200000u

struct side {
	struct shared *shared;
	struct ring *ring;
	int wake_fd;
	uint32_t wakeups;
	uint32_t wrong;
};

static void *produce(void *user)
{
	struct side *side = user;
	const uint64_t one = 1;

	for (uint64_t i = 0; i < ROUNDS;) {
		/* Mostly one by one, so that the consumer often falls asleep. */
		int batch = i % 5 ? 1 : ring_produce_room(side->ring);

		if (ring_produce_room(side->ring) < batch)
			continue;
		for (; batch > 0 && i < ROUNDS; batch--, i++) {
			uint64_t entry[8] = { i, ~i };

			ring_produce(side->ring, entry);
		}
		if (ring_publish(side->ring)) {
			side->wakeups++;
			if (write(side->wake_fd, &one, sizeof(one)) != sizeof(one))
				side->wrong++;
		}
	}
	return NULL;
}

/* Sleeps without a timeout: a lost wake-up hangs the test, which its runner ends. */
static void *consume(void *user)
{
	struct side *side = user;
	uint64_t expected = 0, value;

	while (expected < ROUNDS) {
		int ready = ring_consume_ready(side->ring);

		if (ready < 0) {
			side->wrong++;
			break;
		}
		for (int i = 0; i < ready; i++, expected++) {
			uint64_t entry[8];

			ring_consume(side->ring, entry);
			side->wrong += entry[0] != expected || entry[1] != ~expected;
		}
		ring_consume_done(side->ring);
		if (!ready && ring_arm(side->ring)) {
			struct pollfd fd = { .fd = side->wake_fd, .events = POLLIN };

			(void)poll(&fd, 1, -1);
			if (read(side->wake_fd, &value, sizeof(value)) != sizeof(value))
				side->wrong++;
		}
	}
	return NULL;
}

static void carries_everything_between_threads(void **state)
{
	struct shared *s = aligned_alloc(64, sizeof(*s));
	struct side producer = { .shared = s }, consumer = { .shared = s };
	struct ring p, c;
	pthread_t threads[2];

	(void)state;
	assert_non_null(s);
	make_pair(s, UINT32_MAX - ROUNDS / 2, &p, &c);
	producer.ring = &p;
	consumer.ring = &c;
	producer.wake_fd = consumer.wake_fd = eventfd(0, EFD_CLOEXEC);
	assert_true(producer.wake_fd >= 0);
	assert_int_equal(pthread_create(&threads[0], NULL, consume, &consumer), 0);
	assert_int_equal(pthread_create(&threads[1], NULL, produce, &producer), 0);
	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_join(threads[i], NULL), 0);
	assert_int_equal(producer.wrong, 0);
	assert_int_equal(consumer.wrong, 0);
	assert_int_equal(c.own_value, UINT32_MAX - ROUNDS / 2 + ROUNDS);
	(void)close(producer.wake_fd);
	free(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(holds_its_capacity),
		cmocka_unit_test(refuses_impossible_indices),
		cmocka_unit_test(looks_at_the_consumer_only_when_it_must),
		cmocka_unit_test(wakes_once_per_sleep),
		cmocka_unit_test(carries_everything_between_threads),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
