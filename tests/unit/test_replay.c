/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_replay.c - `skvc-bench replay`'s policies on traces whose answers are known by hand or by trying everything, and
 * what its reader takes and refuses.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <errno.h>

#include <cmocka.h>

#include "gpu/model/report.h"
#include "tools/replay_log.h"
#include "tools/replay_policies.h"
#include "tools/replay_promote.h"
#include "tools/replay_trace.h"

#define END (-1)

static uint64_t hits_of(const struct replay_trace *t,
			int (*run)(const struct replay_trace *t, uint32_t capacity,
				   struct replay_result *r),
			uint32_t capacity)
{
	struct replay_result r;

	assert_int_equal(run(t, capacity, &r), 0);
	return r.hits;
}

static void a_scan_between(void **state)
{
	/* Three blocks fit: a prefix of three twice, something else once, and the prefix again. */
	static const int64_t ids[] = { 7, 8, 9, END, 7, 8, 9, END, 5, END, 7, 8, 9, END };
	struct replay_trace t;

	(void)state;
	assert_int_equal(replay_trace_make(ids, 4, &t), 0);
	assert_int_equal(t.blocks, 4);
	assert_int_equal(t.first[4], 10);
	/* 3 of the second request; the scan costs the last block of the prefix: 2 of the last. */
	assert_int_equal(hits_of(&t, replay_lru, 3), 5);
	assert_int_equal(hits_of(&t, replay_daemon, 3), 5);  /* nothing is known yet */
	assert_int_equal(hits_of(&t, replay_optimum, 3), 6); /* the scan is not kept */
	assert_int_equal(hits_of(&t, replay_arc, 3), 5);
	for (uint32_t p = 0; p < REPLAY_POLICIES; p++)
		assert_int_equal(hits_of(&t, replay_policies[p].run, 4), 6);
	replay_trace_deinit(&t);
}

static void a_request_that_does_not_fit(void **state)
{
	static const int64_t ids[] = { 1, 2, 3, 4, 5, END, END, 1, 2, 3, 4, 5, END };
	struct replay_trace t;

	(void)state;
	assert_int_equal(replay_trace_make(ids, 3, &t), 0);
	for (uint32_t capacity = 1; capacity <= 5; capacity++) {
		assert_int_equal(hits_of(&t, replay_lru, capacity), capacity);
		assert_int_equal(hits_of(&t, replay_daemon, capacity), capacity);
		assert_int_equal(hits_of(&t, replay_optimum, capacity), capacity);
	}
	replay_trace_deinit(&t);
}

/* A hit behind a gap is none: its parent is not there. */
static void only_leading_blocks_count(void **state)
{
	static const int64_t ids[] = { 2, END, 1, 2, END, 1, 2, END, 1, 1, END };
	struct replay_trace t;

	(void)state;
	assert_int_equal(replay_trace_make(ids, 4, &t), 0);
	for (uint32_t p = 0; p < REPLAY_POLICIES; p++)
		assert_int_equal(hits_of(&t, replay_policies[p].run, 10), 0 + 2 + 2);
	replay_trace_deinit(&t);
}

/* ---- random trees ---- */

#define NODES 6u
#define REQUESTS 7u
#define ROOM (REQUESTS * (NODES + 1))

static uint64_t seed;

static uint32_t rnd(uint32_t below)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (uint32_t)((seed >> 32) % below);
}

/* Requests that are paths from a root of a random tree of nodes; ids holds requests * (nodes + 1). */
static void make_paths(int64_t *ids, uint32_t nodes, uint32_t requests)
{
	uint32_t parent[512], path[512];

	for (uint32_t i = 0; i < nodes; i++)
		parent[i] = i && rnd(4) ? rnd(i) : i;
	for (uint32_t r = 0; r < requests; r++) {
		uint32_t at = rnd(nodes), n = 0;

		path[n++] = at;
		for (; parent[at] != at; at = parent[at])
			path[n++] = parent[at];
		while (n > 0)
			*ids++ = path[--n];
		*ids++ = END;
	}
}

static uint32_t bits_of(const struct replay_trace *t, uint32_t request)
{
	uint32_t bits = 0;

	for (uint32_t i = t->first[request]; i < t->first[request + 1]; i++)
		bits |= 1u << t->block[i];
	return bits;
}

/* The most hits of all ways to choose what stays after each request. */
static uint32_t try_everything(const struct replay_trace *t, uint32_t capacity)
{
	int best[1u << NODES], next[1u << NODES], most = 0;

	for (uint32_t s = 0; s < 1u << NODES; s++)
		best[s] = s ? -1 : 0;
	for (uint32_t r = 0; r < t->requests; r++) {
		memset(next, -1, sizeof(next));
		for (uint32_t s = 0; s < 1u << NODES; s++) {
			uint32_t at = t->first[r], all = s | bits_of(t, r);
			int hits = best[s];

			if (best[s] < 0)
				continue;
			for (; at < t->first[r + 1] && s & 1u << t->block[at]; at++)
				hits++;
			for (uint32_t keep = all;; keep = (keep - 1) & all) {
				if ((uint32_t)__builtin_popcount(keep) <= capacity &&
				    hits > next[keep])
					next[keep] = hits;
				if (!keep)
					break;
			}
		}
		memcpy(best, next, sizeof(best));
	}
	for (uint32_t s = 0; s < 1u << NODES; s++)
		most = best[s] > most ? best[s] : most;
	return (uint32_t)most;
}

static void the_optimum_is_one(void **state)
{
	(void)state;
	for (uint32_t n = 0; n < 300; n++) {
		int64_t ids[ROOM];
		struct replay_trace t;
		uint32_t capacity = 1 + rnd(NODES);

		make_paths(ids, NODES, REQUESTS);
		assert_int_equal(replay_trace_make(ids, REQUESTS, &t), 0);
		assert_int_equal(hits_of(&t, replay_optimum, capacity),
				 try_everything(&t, capacity));
		replay_trace_deinit(&t);
	}
}

static void nobody_beats_the_optimum(void **state)
{
	static int64_t ids[2000 * 201];
	struct replay_trace t;

	(void)state;
	for (uint32_t n = 0; n < 10; n++) {
		uint64_t all, most;
		uint32_t capacity;

		make_paths(ids, 200, 2000);
		assert_int_equal(replay_trace_make(ids, 2000, &t), 0);
		capacity = 1 + rnd(t.blocks);
		most = hits_of(&t, replay_optimum, capacity);
		all = t.first[t.requests] - t.blocks;
		for (uint32_t p = 0; p < REPLAY_POLICIES; p++) {
			assert_true(hits_of(&t, replay_policies[p].run, capacity) <= most);
			assert_int_equal(hits_of(&t, replay_policies[p].run, t.blocks), all);
		}
		replay_trace_deinit(&t);
	}
}

/* ---- the log ---- */

#define SCANS 80u

/* A prefix of 4 blocks that is asked for between scans that are not. */
static void the_log_keeps_what_is_used(void **state)
{
	static int64_t ids[SCANS * (5 + 9)];
	struct replay_log_options o = {
		.host_blocks = 4, .nvme_blocks = 64, .segment_blocks = 8, .copy_percent = 50
	};
	struct replay_log_result r, none;
	struct replay_trace t;
	uint32_t n = 0;

	(void)state;
	for (int64_t i = 0; i < SCANS; i++) {
		for (int64_t k = 0; k < 4; k++)
			ids[n++] = k;
		ids[n++] = END;
		for (int64_t k = 0; k < 8; k++)
			ids[n++] = 100 + 8 * i + k;
		ids[n++] = END;
	}
	assert_int_equal(replay_trace_make(ids, 2 * SCANS, &t), 0);
	assert_int_equal(replay_log(&t, &o, &r), 0);
	assert_int_equal(r.hits, 4 * (SCANS - 1)); /* all but the first */
	assert_int_equal(r.stored, t.blocks);
	assert_true(r.copied > 0 && r.copied <= r.stored / 2);
	o.copy_percent = 0;
	assert_int_equal(replay_log(&t, &o, &none), 0);
	assert_int_equal(none.copied, 0);
	assert_true(none.hits < r.hits && none.stored > r.stored);
	o.nvme_blocks = 63;
	assert_int_equal(replay_log(&t, &o, &r), -EINVAL);
	replay_trace_deinit(&t);
}

/* ---- promotions ---- */

static struct replay_promote_result promoted(const struct replay_trace *t,
					     enum replay_promotion rule, uint32_t host,
					     uint32_t nvme)
{
	struct replay_promote_result r;

	assert_int_equal(replay_promote(t, rule, host, nvme, &r), 0);
	return r;
}

/* Two of three fit the host, so the first lies on NVMe when it comes again, three times. */
static void what_is_promoted_is_found_in_the_host(void **state)
{
	static const int64_t ids[] = { 1, END, 2, END, 3, END, 1, END, 1, END, 1, END };
	static const struct {
		enum replay_promotion rule;
		uint64_t host;
	} rules[] = { { REPLAY_PROMOTE_ALWAYS, 2 },
		      { REPLAY_PROMOTE_WORTH, 2 },
		      { REPLAY_PROMOTE_THIRD, 1 },
		      { REPLAY_PROMOTE_NEVER, 0 } };
	struct replay_trace t;

	(void)state;
	assert_int_equal(replay_trace_make(ids, 6, &t), 0);
	for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++) {
		struct replay_promote_result r = promoted(&t, rules[i].rule, 2, 4);

		assert_int_equal(r.host, rules[i].host);
		assert_int_equal(r.nvme, 3 - rules[i].host);
	}
	replay_trace_deinit(&t);
}

/* Whatever becomes of them, no block is found that is not there, and all are while they fit. */
static void promotions_lose_nothing(void **state)
{
	static int64_t ids[2000 * 201];
	struct replay_trace t;

	(void)state;
	for (uint32_t n = 0; n < 40; n++) {
		enum replay_promotion rule = n % REPLAY_PROMOTIONS;
		struct replay_promote_result r;
		uint32_t host, nvme;
		uint64_t all;

		make_paths(ids, 200, 2000);
		assert_int_equal(replay_trace_make(ids, 2000, &t), 0);
		host = 1 + rnd(t.blocks);
		nvme = 1 + rnd(t.blocks);
		all = t.first[t.requests] - t.blocks;
		r = promoted(&t, rule, host, nvme);
		assert_true(r.host + r.nvme <= all);
		r = promoted(&t, rule, t.blocks, 1);
		assert_int_equal(r.host, all);
		assert_int_equal(r.nvme, 0);
		replay_trace_deinit(&t);
	}
}

/* ---- the reader ---- */

static int read_text(const char *text, struct replay_trace *t, char err[REPORT_BYTES])
{
	char path[] = "/tmp/test_replay.XXXXXX";
	int fd = mkstemp(path), r;

	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), strlen(text));
	close(fd);
	r = replay_trace_read(&(struct report){ "trace", err, REPORT_BYTES }, path, t);
	unlink(path);
	return r;
}

static void reads_json_lines(void **state)
{
	struct replay_trace t;
	char err[REPORT_BYTES];

	(void)state;
	assert_int_equal(read_text("{\"timestamp\": 1, \"hash_ids\": [4, 9007199254740991]}\n\n"
				   "{\"hash_ids\": []}\n{\"hash_ids\": [4, 0]}",
				   &t, err),
			 0);
	assert_int_equal(t.requests, 3);
	assert_int_equal(t.blocks, 3);
	assert_int_equal(t.first[3], 4);
	assert_int_equal(t.block[2], 0);
	assert_int_equal(t.block[3], 2);
	replay_trace_deinit(&t);
}

static void refuses_what_is_no_trace(void **state)
{
	static const char *const wrong[] = {
		"",
		"\n\n",
		"{\"hash_ids\": []}\n",
		"{\"hash_ids\": [1]}\n{\"hash_ids\": 1}\n",
		"{\"hash_ids\": [1]}\n{\"ids\": [1]}\n",
		"{\"hash_ids\": [1]}\n{\"hash_ids\": [1, -1]}\n",
		"{\"hash_ids\": [1]}\n{\"hash_ids\": [1.5]}\n",
		"{\"hash_ids\": [1]}\n{\"hash_ids\": [1e300]}\n",
		"{\"hash_ids\": [1]}\n{\"hash_ids\": [\"1\"]}\n",
		"{\"hash_ids\": [1]}\n{\"hash_ids\": [1]\n",
		"{\"hash_ids\": [1]}\nno JSON\n",
	};
	char err[REPORT_BYTES];
	struct replay_trace t;

	(void)state;
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		assert_int_equal(read_text(wrong[i], &t, err), -EINVAL);
		assert_null(t.block);
		assert_non_null(strstr(err, i < 3 ? "no request" : "line 2"));
	}
	assert_int_equal(replay_trace_read(&(struct report){ "trace", err, sizeof(err) },
					   "/nonexistent", &t),
			 -ENOENT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_scan_between),
		cmocka_unit_test(a_request_that_does_not_fit),
		cmocka_unit_test(only_leading_blocks_count),
		cmocka_unit_test(the_optimum_is_one),
		cmocka_unit_test(nobody_beats_the_optimum),
		cmocka_unit_test(the_log_keeps_what_is_used),
		cmocka_unit_test(what_is_promoted_is_found_in_the_host),
		cmocka_unit_test(promotions_lose_nothing),
		cmocka_unit_test(reads_json_lines),
		cmocka_unit_test(refuses_what_is_no_trace),
	};

	seed = (uint64_t)time(NULL) * 0x9e3779b97f4a7c15ull | 1;
	print_message("seed %llu\n", (unsigned long long)seed);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
