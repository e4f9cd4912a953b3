/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_restore.c - what a lane makes of records that are whole and by their checksums fine, and yet say what no daemon
 * would have written: each is refused by itself, or harms nobody.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <errno.h>
#include <fcntl.h>

#include <cmocka.h>
#include <zstd.h>

#include "daemon/lane_state.h"
#include "daemon/nvme_format.h"
#include "daemon/record.h"
#include "tests/lib/lane_rig.h"
#include "tests/lib/rng.h"

#define CHAIN 40u
#define BLOCK_BYTES 4096u /* where records begin */

static struct rig rig;
static struct lane_rig_session rs;
static struct config config;
static char path[64];

static uint64_t counter(enum stats_id id)
{
	return stats_get(lane_stats(rig.lane), id);
}

static void start(void)
{
	lane_rig_start_again(&rig, &config);
	lane_rig_session_open(&rig, &rs);
}

static void end(void)
{
	lane_rig_session_close(&rs);
	lane_rig_stop(&rig);
}

/* All that is stored is written. */
static int setup(void **state)
{
	int fd;

	(void)state;
	(void)snprintf(path, sizeof(path), "./skvcd-test-XXXXXX");
	fd = mkstemp(path);
	assert_true(fd >= 0);
	assert_int_equal(close(fd), 0);
	lane_rig_config(&config);
	config.speculator = CONFIG_SPECULATOR_RAW;
	config.pool_bytes = 16u << 20;
	config.spill_percent = 0;
	(void)snprintf(config.nvme_path, sizeof(config.nvme_path), "%s", path);
	config.nvme_bytes = 32u << 20;
	config.nvme_segment_bytes = 1u << 20;
	start();
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	end();
	(void)unlink(path);
	return 0;
}

static void wait_for(enum stats_id id, uint64_t value)
{
	const uint64_t start_ns = clock_now_ns();

	while (counter(id) != value) {
		if (clock_now_ns() - start_ns > RIG_WAIT_NS)
			fail_msg("%s is %llu, not %llu", stats_info[id].name,
				 (unsigned long long)counter(id), (unsigned long long)value);
		usleep(1000);
	}
}

static void store_chain(void)
{
	for (uint32_t i = 0; i < CHAIN; i++)
		lane_rig_fill(&rs, i, i);
	lane_rig_store(&rs, 0, CHAIN, 7);
	assert_int_equal(lane_rig_done(&rs).res, 0);
	wait_for(STAT_BLOCKS_NVME, counter(STAT_BLOCKS));
}

/* In the file: of each record what `change` makes of it; no checkpoint, and no list of what was forgotten. */
static unsigned edit(void (*change)(struct record_header *h))
{
	static _Alignas(4096) uint8_t block[BLOCK_BYTES];
	struct nvme_segment_header s;
	struct record_header h;
	unsigned changed = 0;
	int fd = open(path, O_RDWR | O_CLOEXEC);

	assert_true(fd >= 0);
	for (off_t at = 0; at < (off_t)config.nvme_bytes; at += BLOCK_BYTES) {
		assert_int_equal(pread(fd, block, sizeof(block), at), sizeof(block));
		memcpy(&s, block, sizeof(s));
		memcpy(&h, block, sizeof(h));
		if (s.magic == NVME_SEGMENT_MAGIC && s.kind == NVME_KIND_CHECKPOINT) {
			memset(block, 0, sizeof(s));
		} else if (s.magic == NVME_TOMBS_MAGIC) {
			memset(block, 0, sizeof(s));
		} else if (record_check_header(&h) == 0) {
			change(&h);
			record_seal_header(&h);
			memcpy(block, &h, sizeof(h));
			changed++;
		} else {
			continue;
		}
		assert_int_equal(pwrite(fd, block, sizeof(block), at), sizeof(block));
	}
	assert_int_equal(close(fd), 0);
	return changed;
}

/* How many of the chain's blocks are found; of these, loaded and exact. */
static uint32_t found(uint32_t *ret_exact)
{
	struct skvc_abi_cqe cqe = lane_rig_lookup(&rs, 0, CHAIN);
	uint32_t count = cqe.count;
	uint64_t lease = cqe.lease;

	*ret_exact = 0;
	if (!count)
		return 0;
	for (uint32_t i = 0; i < count; i++)
		memset(lane_rig_page(&rs, i), 0, rig.ns.geom.raw_bytes);
	lane_rig_load(&rs, lease, 0, count, 8);
	*ret_exact = lane_rig_complete(&rs).count;
	for (uint32_t i = 0; i < count; i++)
		if (lane_rig_bitmap(&rs, rs.result_rel) >> i & 1)
			assert_true(lane_rig_page_is(&rs, i, i));
	assert_int_equal(lane_rig_release(&rs, lease).res, 0);
	return count;
}

/* ---- tests ---- */

static void as_it_was(struct record_header *h)
{
	(void)h;
}

static void records_alone_are_enough(void **state)
{
	uint32_t exact;

	(void)state;
	store_chain();
	end();
	assert_int_equal(edit(as_it_was), CHAIN);
	start();
	assert_int_equal(counter(STAT_BLOCKS_NVME), CHAIN);
	assert_int_equal(found(&exact), CHAIN);
	assert_int_equal(exact, CHAIN);
}

/* Of a block that was written twice the newer record counts, once. */
static void a_block_that_is_there_twice_is_one(void **state)
{
	uint32_t exact;

	(void)state;
	store_chain();
	lane_rig_drop(&rs, 0, CHAIN, 9);
	assert_int_equal(lane_rig_complete(&rs).count, CHAIN);
	store_chain();
	end();
	assert_int_equal(edit(as_it_was), 2 * CHAIN);
	start();
	assert_int_equal(counter(STAT_BLOCKS_NVME), CHAIN);
	assert_int_equal(counter(STAT_NVME_RESTORED_BLOCKS), CHAIN);
	assert_int_equal(counter(STAT_BLOCKS), CHAIN);
	assert_int_equal(found(&exact), CHAIN);
	assert_int_equal(exact, CHAIN);
}

static void by_a_model(struct record_header *h)
{
	h->speculator = CODEC_SPEC_MODEL;
}

/* Who is to decode it only its profile could say. */
static void a_model_without_a_profile_is_refused(void **state)
{
	uint32_t exact;

	(void)state;
	store_chain();
	end();
	assert_int_equal(edit(by_a_model), CHAIN);
	start();
	assert_int_equal(found(&exact), 0);
	assert_int_equal(counter(STAT_NVME_REFUSED_BLOCKS), CHAIN);
}

/* Stored one behind the other, in this order; pages are of the keys' numbers. */
static void store_pair(uint32_t first, uint32_t second)
{
	const uint32_t rel = 8192, numbers[] = { first, second };
	uint8_t *args = rs.s.segment + rs.s.layout.args_off + rel;
	const struct skvc_abi_key keys[] = { lane_rig_key(first), lane_rig_key(second) };

	lane_rig_fill(&rs, first, first);
	lane_rig_fill(&rs, second, second);
	memcpy(args, keys, sizeof(keys));
	memcpy(args + sizeof(keys), numbers, sizeof(numbers));
	lane_rig_submit(&rs,
			&(struct skvc_abi_sqe){ .opcode = SKVC_ABI_OP_STORE,
						.ns = 1,
						.region = 1,
						.count = 2,
						.args_rel = rel,
						.args_bytes = sizeof(keys) + sizeof(numbers) });
	assert_int_equal(lane_rig_done(&rs).res, 0);
	wait_for(STAT_BLOCKS_NVME, 2);
}

static void first_ones_are_gone(struct record_header *h)
{
	h->ns_digest[0] ^= !h->parent_len;
}

/*
 * One's record says that it comes behind the other, which was dropped then and stored again behind the one.  In a
 * ring of blocks none is ever the last one of its chain: nothing of it could be given up.
 */
static void two_that_name_each_other_are_no_ring(void **state)
{
	uint32_t id, exact, n = 0;
	struct skvc_abi_key key = lane_rig_key(0);

	(void)state;
	store_pair(0, 1);
	lane_rig_drop(&rs, 0, 1, 9);
	assert_int_equal(lane_rig_complete(&rs).count, 1);
	store_pair(1, 0);
	end();
	assert_int_equal(edit(first_ones_are_gone), 3);
	start();
	assert_int_equal(counter(STAT_BLOCKS_NVME), 2);
	for (id = index_find(rig.lane->index, 0, &key); id != BLOCK_NONE; n++) {
		assert_true(n < 2);
		id = index_parent(rig.lane->index, id);
	}
	(void)found(&exact);
	assert_int_equal(exact, 2);
}

static struct rng rng;

/* One of its bytes behind the checksums, in one record of two; but whose key it has. */
static void by_chance(struct record_header *h)
{
	const uint32_t first = offsetof(struct record_header, raw_xxh3);
	uint32_t at = first + rng_below(&rng, (uint32_t)sizeof(*h) - first);

	if (rng_one_in(&rng, 2) && (at < offsetof(struct record_header, key) ||
				    at >= offsetof(struct record_header, parent)))
		((uint8_t *)h)[at] = (uint8_t)rng_below(&rng, 256);
}

static void whatever_heads_say_nothing_wrong_is_loaded(void **state)
{
	uint32_t exact;

	(void)state;
	rng_init(&rng, rng_seed_env(0x68656164));
	for (unsigned round = 0; round < 2; round++) {
		store_chain();
		for (unsigned again = 0; again < 3; again++) {
			end();
			(void)edit(by_chance);
			start();
			(void)found(&exact);
		}
		lane_rig_drop(&rs, 0, CHAIN, 9);
		(void)lane_rig_complete(&rs);
	}
}

/* A piece of a blob lies at p: some of its bytes are others.  0: there is none, or no room for it. */
static int edit_piece(uint8_t *p, uint32_t room)
{
	static uint8_t raw[1u << 20], out[1u << 21];
	struct nvme_piece h;
	size_t n;

	memcpy(&h, p, sizeof(h));
	if (h.magic != NVME_PIECE_MAGIC || h.stored_bytes > room - sizeof(h))
		return 0;
	room = (h.stored_bytes + (uint32_t)sizeof(h) + BLOCK_BYTES - 1) & ~(BLOCK_BYTES - 1);
	n = ZSTD_decompress(raw, sizeof(raw), p + sizeof(h), h.stored_bytes);
	assert_int_equal(n, h.raw_bytes);
	for (unsigned i = 1 + rng_below(&rng, 12); i > 0; i--)
		raw[rng_one_in(&rng, 8) ? rng_below(&rng, 8) : rng_below(&rng, h.raw_bytes)] =
			(uint8_t)rng_below(&rng, rng_one_in(&rng, 2) ? 4 : 256);
	n = ZSTD_compress(out, sizeof(out), raw, h.raw_bytes, 1);
	if (ZSTD_isError(n) || n > room - sizeof(h))
		return 0;
	memcpy(p + sizeof(h), out, n);
	h.stored_bytes = (uint32_t)n;
	h.stored_xxh3 = XXH3_64bits(out, n);
	h.xxh3 = nvme_format_xxh3(&h, sizeof(h));
	memcpy(p, &h, sizeof(h));
	return 1;
}

/* In the file: the pieces of all blobs. */
static unsigned edit_blobs(void)
{
	uint8_t *segment = malloc(config.nvme_segment_bytes);
	struct nvme_segment_header s;
	int fd = open(path, O_RDWR | O_CLOEXEC);
	unsigned changed = 0;

	assert_true(fd >= 0 && segment);
	for (off_t at = 0; at < (off_t)config.nvme_bytes; at += (off_t)config.nvme_segment_bytes) {
		const uint32_t bytes = (uint32_t)config.nvme_segment_bytes;

		assert_int_equal(pread(fd, segment, bytes, at), bytes);
		memcpy(&s, segment, sizeof(s));
		if (s.magic != NVME_SEGMENT_MAGIC || s.kind == NVME_KIND_DATA ||
		    (s.kind == NVME_KIND_META && !rng_one_in(&rng, 8)))
			continue;
		for (uint32_t off = BLOCK_BYTES; off < bytes; off += BLOCK_BYTES)
			changed += (unsigned)edit_piece(segment + off, bytes - off);
		assert_int_equal(pwrite(fd, segment, bytes, at), bytes);
	}
	assert_int_equal(close(fd), 0);
	free(segment);
	return changed;
}

static void whatever_a_checkpoint_says_nothing_wrong_is_loaded(void **state)
{
	unsigned changed = 0;
	uint32_t exact;

	(void)state;
	rng_init(&rng, rng_seed_env(0x626c6f62));
	for (unsigned round = 0; round < 2; round++) {
		store_chain();
		for (unsigned again = 0; again < 4; again++) {
			end();
			changed += edit_blobs();
			start();
			(void)found(&exact);
		}
		lane_rig_drop(&rs, 0, CHAIN, 9);
		(void)lane_rig_complete(&rs);
	}
	assert_true(changed > 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(records_alone_are_enough, setup, teardown),
		cmocka_unit_test_setup_teardown(a_block_that_is_there_twice_is_one, setup,
						teardown),
		cmocka_unit_test_setup_teardown(a_model_without_a_profile_is_refused, setup,
						teardown),
		cmocka_unit_test_setup_teardown(two_that_name_each_other_are_no_ring, setup,
						teardown),
		cmocka_unit_test_setup_teardown(whatever_heads_say_nothing_wrong_is_loaded, setup,
						teardown),
		cmocka_unit_test_setup_teardown(whatever_a_checkpoint_says_nothing_wrong_is_loaded,
						setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
