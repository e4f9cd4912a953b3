/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_warm.c - the index of host memory: what a lane wrote another one finds, all of it and nothing else; a copy that
 * was cut off or changed anywhere is refused; one that was made up, checksums and all, costs blocks at most.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/persist.h"
#include "daemon/warm.h"
#include "ipc/segment.h"
#include "tests/lib/lane_rig.h"
#include "tests/lib/rng.h"

#define BLOCKS 96u

#ifdef SKVCD_SAN
#define FORGED 10u
#else
#define FORGED 50u
#endif

struct life {
	struct rig rig;
	struct lane_rig_session s;
};

static void configure(struct config *c)
{
	lane_rig_config(c);
	c->speculator = CONFIG_SPECULATOR_CHANNEL;
}

static void begin(struct life *l, int pool_fd, int index_fd)
{
	struct config c;

	configure(&c);
	lane_rig_start_warm(&l->rig, &c, pool_fd, index_fd);
	lane_rig_session_open(&l->rig, &l->s);
}

/* The session has gone, the lane as well: its pool and its index. */
static void end(struct life *l, int *ret_pool_fd, int *ret_index_fd)
{
	lane_rig_session_close(&l->s);
	assert_int_equal(mailbox_send(lane_inbox(l->rig.lane), &(struct mail){ .type = LANE_STOP }),
			 0);
	assert_int_equal(lane_save(l->rig.lane, ret_index_fd), 0);
	*ret_pool_fd = dup(lane_pool_fd(l->rig.lane));
	l->rig.lane = lane_join(l->rig.lane);
	codec_geometry_deinit(&l->rig.ns.geom);
}

static uint64_t stat_of(const struct life *l, enum stats_id id)
{
	return stats_get(lane_stats(l->rig.lane), id);
}

static void store(struct life *l, uint32_t first, uint32_t count)
{
	struct skvc_abi_cqe cqe;

	for (uint32_t i = first; i < first + count; i++)
		lane_rig_fill(&l->s, i, i);
	lane_rig_store(&l->s, first, count, 1);
	cqe = lane_rig_done(&l->s);
	assert_int_equal(cqe.res, 0);
	assert_int_equal(cqe.count, count);
}

/* How many of these keys are there; each that is has to be exact, or lost and never wrong. */
static unsigned fetch(struct life *l, uint32_t first, uint32_t count, unsigned *ret_lost)
{
	unsigned found = 0;

	for (uint32_t i = first; i < first + count; i++) {
		struct skvc_abi_cqe look = lane_rig_lookup(&l->s, i, 1), load;

		if (look.res < 0)
			continue;
		memset(lane_rig_page(&l->s, i), 0, l->rig.ns.geom.raw_bytes);
		lane_rig_load(&l->s, look.lease, i, 1, 2);
		load = lane_rig_done(&l->s);
		if (load.count == 1) {
			assert_true(lane_rig_page_is(&l->s, i, i));
			found++;
		} else if (ret_lost) {
			(*ret_lost)++;
		}
		lane_rig_release(&l->s, look.lease);
	}
	return found;
}

/* One life with blocks, some of them dropped; the index of it. */
static void make(int *ret_pool_fd, int *ret_index_fd)
{
	struct life l;

	begin(&l, 0, 0);
	store(&l, 0, 64);
	store(&l, 64, 64);
	lane_rig_drop(&l.s, 0, 128 - BLOCKS, 3);
	assert_int_equal(lane_rig_complete(&l.s).res, 0);
	assert_int_equal(stat_of(&l, STAT_BLOCKS), BLOCKS);
	end(&l, ret_pool_fd, ret_index_fd);
}

static void a_lane_finds_what_another_one_left(void **state)
{
	int pool_fd, index_fd, keep_fd;
	struct warm_index index;
	struct life l;

	(void)state;
	make(&pool_fd, &index_fd);
	assert_int_equal(warm_read(index_fd, &index), 0);
	assert_int_equal(index.h.blocks_count, BLOCKS);
	assert_true(index.h.spans_count > 0 && index.h.metas_count >= 2);
	warm_index_end(&index);
	for (unsigned life = 1; life < 4; life++) {
		keep_fd = dup(index_fd);
		begin(&l, pool_fd + 1, index_fd + 1);
		assert_int_equal(stat_of(&l, STAT_HOST_RESTORED_BLOCKS), BLOCKS);
		assert_int_equal(stat_of(&l, STAT_HOST_REFUSED_BLOCKS), 0);
		assert_int_equal(stat_of(&l, STAT_BLOCKS), BLOCKS);
		assert_int_equal(stat_of(&l, STAT_CODED_BYTES), stat_of(&l, STAT_POOL_USED_BYTES));
		assert_int_equal(l.rig.tenant.charged_bytes > 0, 1);
		assert_int_equal(warm_read(keep_fd, &index), -ENODATA); /* used */
		(void)close(keep_fd);
		assert_int_equal(fetch(&l, 0, 128, NULL), BLOCKS);
		store(&l, 128, 32); /* with the profile that came back */
		assert_true(l.rig.ns.newest != NULL);
		lane_rig_drop(&l.s, 128, 32, 4);
		(void)lane_rig_complete(&l.s);
		end(&l, &pool_fd, &index_fd);
	}
	(void)close(pool_fd);
	(void)close(index_fd);
}

static void without_an_index_it_starts_empty(void **state)
{
	int pool_fd, index_fd;
	struct life l;

	(void)state;
	make(&pool_fd, &index_fd);
	(void)close(index_fd);
	begin(&l, pool_fd + 1, 0);
	assert_int_equal(stat_of(&l, STAT_BLOCKS), 0);
	store(&l, 0, 64);
	assert_int_equal(fetch(&l, 0, 128, NULL), 64);
	end(&l, &pool_fd, &index_fd);
	(void)close(pool_fd);
	/* And an index without its pool is nothing. */
	begin(&l, 0, index_fd + 1);
	assert_int_equal(stat_of(&l, STAT_BLOCKS), 0);
	end(&l, &pool_fd, &index_fd);
	(void)close(pool_fd);
	(void)close(index_fd);
}

static void another_pool_or_configuration_is_not_taken(void **state)
{
	int pool_fd, index_fd, other_pool, other_index;
	struct config c;
	struct life l;

	(void)state;
	make(&pool_fd, &index_fd);
	make(&other_pool, &other_index);
	begin(&l, other_pool + 1, index_fd + 1);
	assert_int_equal(stat_of(&l, STAT_BLOCKS), 0);
	end(&l, &other_pool, &index_fd);
	(void)close(other_pool);
	(void)close(index_fd);
	configure(&c);
	c.pool_bytes *= 2;
	lane_rig_start_warm(&l.rig, &c, pool_fd + 1, other_index + 1);
	assert_int_equal(stat_of(&l, STAT_BLOCKS), 0);
	assert_int_equal(stat_of(&l, STAT_POOL_BYTES), c.pool_bytes);
	lane_rig_stop(&l.rig);
}

/* ---- bytes ---- */

static uint8_t *read_index(int fd, uint64_t *ret_bytes)
{
	struct stat st;
	uint8_t *p;

	assert_int_equal(fstat(fd, &st), 0);
	p = aligned_alloc(64, (size_t)st.st_size);
	assert_non_null(p);
	assert_int_equal(pread(fd, p, (size_t)st.st_size, 0), st.st_size);
	*ret_bytes = (uint64_t)st.st_size;
	return p;
}

static void any_other_byte_is_refused(void **state)
{
	int pool_fd, index_fd;
	struct warm_index index;
	uint64_t bytes, total;
	struct rng rng;
	uint8_t *p;

	(void)state;
	rng_init(&rng, 4);
	make(&pool_fd, &index_fd);
	p = read_index(index_fd, &bytes);
	assert_int_equal(warm_parse(p, bytes, &index), 0);
	total = index.h.total_bytes;
	for (unsigned i = 0; i < 20000; i++) {
		/* The header's all, then anywhere. */
		uint64_t bit = i < 1024 ? i : rng_next(&rng) % (8 * total);

		p[bit / 8] ^= (uint8_t)(1u << bit % 8);
		assert_true(warm_parse(p, bytes, &index) < 0);
		p[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
	for (unsigned i = 0; i < 2000; i++)
		assert_true(warm_parse(p, rng_next(&rng) % total, &index) < 0);
	for (uint64_t n = 0; n < 300; n++)
		assert_true(warm_parse(p, n, &index) < 0);
	assert_int_equal(warm_parse(p, total, &index), 0);
	/* Written up to here and not further. */
	memset(p, 0, sizeof(struct warm_header));
	assert_int_equal(warm_parse(p, bytes, &index), -ENODATA);
	free(p);
	(void)close(pool_fd);
	(void)close(index_fd);
}

static void only_our_own_memfds_are_read(void **state)
{
	char path[] = "/tmp/skvcd-warm-XXXXXX";
	int pool_fd, index_fd, fd;
	struct warm_index index;
	uint64_t bytes;
	uint8_t *p;

	(void)state;
	make(&pool_fd, &index_fd);
	p = read_index(index_fd, &bytes);
	fd = mkstemp(path);
	(void)unlink(path);
	assert_int_equal(write(fd, p, bytes), bytes);
	assert_int_equal(warm_read(fd, &index), -ESTALE);
	(void)close(fd);
	assert_int_equal(segment_create("empty", WARM_PAGE_BYTES, &fd), 0);
	assert_int_equal(warm_read(fd, &index), -ENODATA);
	(void)close(fd);
	assert_int_equal(warm_read(-1, &index), -ESTALE);
	free(p);
	(void)close(pool_fd);
	(void)close(index_fd);
}

/* ---- made up ---- */

static void seal(uint8_t *p)
{
	struct warm_header *h = (struct warm_header *)(void *)p;

	h->body_xxh3 = XXH3_64bits(p + sizeof(*h), h->total_bytes - sizeof(*h));
	h->xxh3 = warm_header_xxh3(h);
}

static void forge(struct rng *rng, uint8_t *p, const struct warm_index *index)
{
	uint64_t body = index->h.total_bytes - sizeof(struct warm_header);
	unsigned changes = 1 + rng_below(rng, 40);

	for (unsigned i = 0; i < changes; i++) {
		uint8_t *spans = p + sizeof(struct warm_header);
		uint8_t *blocks = spans + index->h.spans_count * sizeof(struct warm_span);
		uint8_t *b = blocks + rng_below(rng, BLOCKS) * sizeof(struct warm_block);

		switch (rng_below(rng, 5)) {
		case 0: /* anything */
			p[sizeof(struct warm_header) + rng_next(rng) % body] ^=
				(uint8_t)(1u << rng_below(rng, 8));
			break;
		case 1: /* of a block, without its key */
			b[64 + rng_below(rng, 53)] = (uint8_t)rng_next(rng);
			break;
		case 2: /* one block's slot, profile and all for another's */
			memcpy(b + 64,
			       blocks + rng_below(rng, BLOCKS) * sizeof(struct warm_block) + 64,
			       64);
			break;
		case 3: /* a block twice */
			memcpy(b, blocks + rng_below(rng, BLOCKS) * sizeof(struct warm_block), 128);
			break;
		default:
			spans[rng_next(rng) % (index->h.spans_count * sizeof(struct warm_span))] =
				(uint8_t)rng_next(rng);
		}
	}
	seal(p);
}

/* Blocks may be missing, lost or in the wrong order, but none is wrong, and the lane goes on. */
static void what_is_made_up_costs_blocks_at_most(void **state)
{
	unsigned found = 0, lost = 0, taken = 0;
	struct rng rng;

	(void)state;
	rng_init(&rng, 8);
	for (unsigned i = 0; i < FORGED; i++) {
		int pool_fd, index_fd, again;
		struct warm_index index;
		uint64_t bytes;
		struct life l;
		uint8_t *p;

		make(&pool_fd, &index_fd);
		p = read_index(index_fd, &bytes);
		assert_int_equal(warm_parse(p, bytes, &index), 0);
		forge(&rng, p, &index);
		assert_int_equal(pwrite(index_fd, p, bytes, 0), bytes);
		taken += warm_parse(p, bytes, &index) == 0;
		free(p);
		begin(&l, pool_fd + 1, index_fd + 1);
		assert_true(stat_of(&l, STAT_BLOCKS) <= BLOCKS);
		found += fetch(&l, 0, 128, &lost);
		store(&l, 200, 32);
		assert_int_equal(fetch(&l, 200, 32, NULL), 32);
		end(&l, &pool_fd, &again);
		(void)close(pool_fd);
		(void)close(again);
	}
	print_message("%u of %u indexes taken; %u blocks exact, %u lost when loaded\n", taken,
		      FORGED, found, lost);
	assert_true(taken > 0 && found > 0);
}

/* The record that lies in a slot is not the one that the index has there. */
static void records_are_looked_at(void **state)
{
	unsigned lost = 0, found, refused;
	int pool_fd, index_fd;
	struct warm_index index;
	struct rng rng;
	struct life l;

	(void)state;
	rng_init(&rng, 21);
	make(&pool_fd, &index_fd);
	assert_int_equal(warm_read(index_fd, &index), 0);
	for (uint32_t i = 0; i < BLOCKS;
	     i += 2) { /* of one half the head, of a quarter the payload */
		uint64_t at = (uint64_t)index.blocks[i].slot * index.h.granule_bytes;
		uint8_t byte = (uint8_t)rng_next(&rng);

		at += i % 4 ? 300 : 64 + rng_below(&rng, 64);
		assert_int_equal(pwrite(pool_fd, &byte, 1, (off_t)at), 1);
	}
	warm_index_end(&index);
	begin(&l, pool_fd + 1, index_fd + 1);
	refused = (unsigned)stat_of(&l, STAT_HOST_REFUSED_BLOCKS);
	assert_int_equal(stat_of(&l, STAT_BLOCKS), BLOCKS - refused);
	assert_true(refused >= 20 && refused <= 24);
	found = fetch(&l, 0, 128, &lost);
	assert_int_equal(found, BLOCKS - refused - lost);
	assert_true(lost >= 20);
	assert_int_equal(stat_of(&l, STAT_CHECKSUM_FAILURES), lost);
	end(&l, &pool_fd, &index_fd);
	(void)close(pool_fd);
	(void)close(index_fd);
}

static void a_smaller_quota_or_index_takes_what_fits(void **state)
{
	int pool_fd, index_fd;
	struct config c;
	struct life l;

	(void)state;
	make(&pool_fd, &index_fd);
	configure(&c);
	c.blocks_max = 40;
	lane_rig_start_warm(&l.rig, &c, pool_fd + 1, index_fd + 1);
	lane_rig_session_open(&l.rig, &l.s);
	assert_int_equal(stat_of(&l, STAT_HOST_RESTORED_BLOCKS), 40);
	assert_int_equal(stat_of(&l, STAT_HOST_REFUSED_BLOCKS), BLOCKS - 40);
	assert_int_equal(fetch(&l, 0, 128, NULL), 40);
	end(&l, &pool_fd, &index_fd);
	(void)close(pool_fd);
	(void)close(index_fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_lane_finds_what_another_one_left),
		cmocka_unit_test(without_an_index_it_starts_empty),
		cmocka_unit_test(another_pool_or_configuration_is_not_taken),
		cmocka_unit_test(any_other_byte_is_refused),
		cmocka_unit_test(only_our_own_memfds_are_read),
		cmocka_unit_test(what_is_made_up_costs_blocks_at_most),
		cmocka_unit_test(records_are_looked_at),
		cmocka_unit_test(a_smaller_quota_or_index_takes_what_fits),
	};

	return cmocka_run_group_tests_name("warm", tests, NULL, NULL);
}
