/* SPDX-License-Identifier: Apache-2.0 */
/*
 * warm_index.c - the bytes of an index of host memory: read, checked, marked as used.  What is in them is hostile until
 * they were checked, and then means nothing yet: that is warm_restore.c's.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/persist.h"
#include "daemon/warm.h"
#include "ipc/segment.h"

static int check_header(const struct warm_header *h, uint64_t count)
{
	uint64_t body;

	if (!h->magic)
		return -ENODATA;
	if (h->magic != WARM_MAGIC)
		return -EBADMSG;
	if (h->version != WARM_VERSION)
		return -EPROTONOSUPPORT;
	if (h->header_bytes != sizeof(*h) || h->xxh3 != warm_header_xxh3(h))
		return -EBADMSG;
	/* Counts are of 32 bits: their sum cannot overflow, and metas_bytes is looked at by itself. */
	body = h->spans_count * (uint64_t)sizeof(struct warm_span) +
	       h->blocks_count * (uint64_t)sizeof(struct warm_block);
	if (h->total_bytes > count || h->total_bytes < sizeof(*h) + body ||
	    h->metas_bytes != h->total_bytes - sizeof(*h) - body)
		return -EBADMSG;
	return 0;
}

int warm_next_meta(const struct warm_index *index, uint64_t *cursor, const uint8_t **ret_bytes,
		   uint32_t *ret_count)
{
	uint64_t left = index->h.metas_bytes - *cursor;
	struct persist_meta m;

	if (left < sizeof(m))
		return 0;
	memcpy(&m, index->metas + *cursor, sizeof(m));
	if (m.bytes > left - sizeof(m) || m.bytes > UINT32_MAX - sizeof(m))
		return 0;
	*ret_bytes = index->metas + *cursor;
	*ret_count = (uint32_t)sizeof(m) + m.bytes;
	*cursor += *ret_count;
	return 1;
}

/* They fill just the room that there is for them. */
static int check_metas(const struct warm_index *index)
{
	uint64_t cursor = 0, count = 0;
	const uint8_t *bytes;
	uint32_t n;

	while (warm_next_meta(index, &cursor, &bytes, &n))
		count++;
	return cursor == index->h.metas_bytes && count == index->h.metas_count ? 0 : -EBADMSG;
}

int warm_parse(const uint8_t *bytes, uint64_t count, struct warm_index *ret)
{
	struct warm_index index = { 0 };
	int r;

	if (count < sizeof(index.h))
		return -EBADMSG;
	memcpy(&index.h, bytes, sizeof(index.h));
	r = check_header(&index.h, count);
	if (r < 0)
		return r;
	if (XXH3_64bits(bytes + sizeof(index.h), index.h.total_bytes - sizeof(index.h)) !=
	    index.h.body_xxh3)
		return -EBADMSG;
	index.spans = (const struct warm_span *)(const void *)(bytes + sizeof(index.h));
	index.blocks = (const struct warm_block *)(const void *)(index.spans + index.h.spans_count);
	index.metas = (const uint8_t *)(index.blocks + index.h.blocks_count);
	r = check_metas(&index);
	if (r < 0)
		return r;
	*ret = index;
	return 0;
}

static int read_all(int fd, uint8_t *to, uint64_t bytes)
{
	for (uint64_t at = 0; at < bytes;) {
		ssize_t n = pread(fd, to + at, bytes - at, (off_t)at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EBADMSG;
		at += (uint64_t)n;
	}
	return 0;
}

/* Copied, not mapped: it is looked at more than once. */
int warm_read(int fd, struct warm_index *ret)
{
	struct warm_index index;
	struct stat st;
	void *map;
	int r;

	if (segment_check_fd(fd, sizeof(struct warm_header)) < 0 || fstat(fd, &st) < 0 ||
	    st.st_uid != geteuid())
		return -ESTALE;
	map = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		   -1, 0);
	if (map == MAP_FAILED)
		return -errno;
	r = read_all(fd, map, (uint64_t)st.st_size);
	if (r == 0)
		r = warm_parse(map, (uint64_t)st.st_size, &index);
	if (r < 0) {
		(void)munmap(map, (size_t)st.st_size);
		return r;
	}
	*ret = index;
	ret->map = map;
	ret->map_bytes = (uint64_t)st.st_size;
	return 0;
}

void warm_index_end(struct warm_index *index)
{
	if (index->map)
		(void)munmap(index->map, (size_t)index->map_bytes);
	memset(index, 0, sizeof(*index));
}

int warm_use(int fd)
{
	const uint64_t none = 0;
	ssize_t n = pwrite(fd, &none, sizeof(none), 0);

	return n < 0 ? -errno : n == sizeof(none) ? 0 : -EIO;
}
