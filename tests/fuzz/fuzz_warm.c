/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_warm.c - any bytes as an index of host memory: refused, or an index that lies inside of them; and a pool that is
 * restored from what it says is a sound one, whatever that was.
 *
 * Input: one byte of flags, then the index.  Flag 1: give it right lengths and checksums first, as a forger would.
 */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/persist.h"
#include "daemon/pool.h"
#include "daemon/warm.h"

#define BYTES_MAX (1u << 20)
#define SLOTS_MAX 4096u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(int condition)
{
	if (!condition)
		abort();
}

static void forge(uint8_t *bytes, uint64_t count)
{
	struct warm_header h;
	uint64_t body;

	memcpy(&h, bytes, sizeof(h));
	h.magic = WARM_MAGIC;
	h.version = WARM_VERSION;
	h.header_bytes = sizeof(h);
	h.total_bytes = count;
	body = (count - sizeof(h)) / 16;
	h.spans_count = body ? h.spans_count % (uint32_t)(body + 1) : 0;
	body = (count - sizeof(h) - h.spans_count * sizeof(struct warm_span)) / 128;
	h.blocks_count = body ? h.blocks_count % (uint32_t)(body + 1) : 0;
	h.metas_bytes = count - sizeof(h) - h.spans_count * sizeof(struct warm_span) -
			h.blocks_count * sizeof(struct warm_block);
	h.metas_count %= 16;
	h.body_xxh3 = XXH3_64bits(bytes + sizeof(h), count - sizeof(h));
	h.xxh3 = warm_header_xxh3(&h);
	memcpy(bytes, &h, sizeof(h));
}

/* All of each piece is inside, and they end where they should. */
static void walk_metas(const struct warm_index *index)
{
	const uint8_t *bytes, *end = index->metas + index->h.metas_bytes, *last = index->metas;
	uint64_t cursor = 0;
	uint32_t count, seen = 0;

	while (warm_next_meta(index, &cursor, &bytes, &count)) {
		must(bytes == last && count >= sizeof(struct persist_meta) &&
		     count <= (uint64_t)(end - bytes));
		last = bytes + count;
		seen++;
	}
	must(last == end && seen == index->h.metas_count);
}

static void restore_pool(const struct warm_index *index)
{
	const struct pool_options o = {
		.bytes = 4u << 20, .slab_bytes = 1u << 20, .granule_bytes = 512, .numa_node = -1
	};
	static uint32_t slot[SLOTS_MAX];
	uint32_t count = 0, more, whole[4];
	struct pool *pool;

	must(pool_new(&o, &pool) == 0);
	for (uint32_t i = 0; i < index->h.spans_count; i++) {
		struct pool_saved_span s = { index->spans[i].unit, index->spans[i].order,
					     index->spans[i].slot_granules };

		(void)pool_restore_span(pool, &s);
	}
	for (uint32_t i = 0; i < index->h.blocks_count && count < SLOTS_MAX; i++)
		if (pool_restore_slot(pool, index->blocks[i].slot, index->blocks[i].record_bytes,
				      i) == 0)
			slot[count++] = index->blocks[i].slot;
	pool_restore_end(pool);
	for (uint32_t i = 0; i < count; i++)
		memset(pool_ptr(pool, slot[i]), 1, pool_slot_bytes(pool, slot[i]));
	if (pool_alloc(pool, 5000, 7, &more) == 0)
		pool_release(pool, more);
	while (count)
		pool_release(pool, slot[--count]);
	for (unsigned i = 0; i < 4; i++)
		must(pool_alloc(pool, 1u << 20, i, &whole[i]) == 0);
	for (unsigned i = 0; i < 4; i++)
		pool_release(pool, whole[i]);
	(void)pool_free(pool);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct warm_index index;
	uint8_t *bytes;
	uint64_t count;
	int r;

	if (size < 1 || size > BYTES_MAX)
		return 0;
	count = size - 1;
	/* To the byte: a sanitizer then sees the first one that is read too many. */
	bytes = malloc(count ? count : 1);
	if (!bytes)
		return 0;
	memcpy(bytes, data + 1, count);
	if (data[0] & 1 && count >= sizeof(struct warm_header))
		forge(bytes, count);
	r = warm_parse(bytes, count, &index);
	must(r == 0 || r == -EBADMSG || r == -ENODATA || r == -EPROTONOSUPPORT);
	if (r == 0) {
		walk_metas(&index);
		restore_pool(&index);
	}
	free(bytes);
	return 0;
}
