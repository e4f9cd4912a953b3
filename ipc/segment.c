/* SPDX-License-Identifier: Apache-2.0 */
/*
 * segment.c - the memfds of a session: layout, sealing, and what a client checks before it believes one.
 * Control thread and client.  Knows nothing of what runs over the rings.
 */
#include "ipc/segment.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ipc/ring.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U /* Linux 6.3 */
#endif

#define SEGMENT_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

static bool is_power_of_two(uint64_t n)
{
	return n && !(n & (n - 1));
}

static uint64_t align_up(uint64_t n, uint64_t to)
{
	return (n + to - 1) & ~(to - 1);
}

int segment_layout(uint32_t sq_entries, uint32_t leases_count, uint64_t args_bytes,
		   struct skvc_abi_header *ret_header)
{
	struct skvc_abi_header h;

	if (!is_power_of_two(sq_entries) || sq_entries < SKVC_ABI_SQ_ENTRIES_MIN ||
	    sq_entries > SKVC_ABI_SQ_ENTRIES_MAX)
		return -EINVAL;
	if (leases_count > SKVC_ABI_LEASES_MAX)
		return -EINVAL;
	if (args_bytes % SKVC_ABI_PAGE_BYTES || args_bytes < SKVC_ABI_ARGS_AREA_BYTES_MIN ||
	    args_bytes > SKVC_ABI_ARGS_AREA_BYTES_MAX)
		return -EINVAL;

	memset(&h, 0, sizeof(h));
	h.magic = SKVC_ABI_MAGIC;
	h.abi_major = SKVC_ABI_MAJOR;
	h.abi_minor = SKVC_ABI_MINOR;
	h.header_bytes = sizeof(h);
	h.entry_bytes = RING_ENTRY_BYTES;
	h.sq_entries = sq_entries;
	h.cq_entries = 4 * sq_entries;
	h.sq_off = align_up(sizeof(h), RING_ENTRY_BYTES);
	h.cq_off = h.sq_off + (uint64_t)h.sq_entries * RING_ENTRY_BYTES;
	h.leases_off = h.cq_off + (uint64_t)h.cq_entries * RING_ENTRY_BYTES;
	h.leases_count = leases_count;
	h.args_off =
		align_up(h.leases_off + (uint64_t)leases_count * sizeof(struct skvc_abi_lease_word),
			 SKVC_ABI_PAGE_BYTES);
	h.args_bytes = args_bytes;
	h.segment_bytes = h.args_off + args_bytes;
	h.daemon_state = SKVC_ABI_DAEMON_OPEN;
	*ret_header = h;
	return 0;
}

int segment_create(const char *name, uint64_t bytes, int *ret_fd)
{
	unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
	int fd, r;

	if (!bytes || bytes % SKVC_ABI_PAGE_BYTES || bytes > INT64_MAX)
		return -EINVAL;
	fd = memfd_create(name, flags | MFD_NOEXEC_SEAL);
	if (fd < 0 && errno == EINVAL)
		fd = memfd_create(name, flags); /* a kernel before NOEXEC_SEAL */
	if (fd < 0)
		return -errno;
	if (ftruncate(fd, (off_t)bytes) < 0 || fcntl(fd, F_ADD_SEALS, SEGMENT_SEALS) < 0) {
		r = -errno;
		(void)close(fd);
		return r;
	}
	*ret_fd = fd;
	return 0;
}

int segment_map(int fd, uint64_t bytes, void **ret_base)
{
	void *base;

	if (!bytes || bytes > SIZE_MAX)
		return -EINVAL;
	base = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (base == MAP_FAILED)
		return -errno;
	*ret_base = base;
	return 0;
}

void segment_unmap(void *base, uint64_t bytes)
{
	if (base)
		(void)munmap(base, (size_t)bytes);
}

int segment_check_fd(int fd, uint64_t bytes)
{
	struct stat st;
	int seals;

	/* Only a memfd has seals: anything else is refused here with EINVAL. */
	seals = fcntl(fd, F_GET_SEALS);
	if (seals < 0)
		return errno == EINVAL ? -EPROTO : -errno;
	if ((seals & SEGMENT_SEALS) != SEGMENT_SEALS || (seals & F_SEAL_WRITE))
		return -EPROTO;
	if (fstat(fd, &st) < 0)
		return -errno;
	if (st.st_size < 0 || (uint64_t)st.st_size < bytes)
		return -EPROTO;
	return 0;
}

struct area {
	uint64_t off;
	uint64_t bytes;
};

/* Inside the segment, behind the header, and sharing no byte with an earlier area. */
static bool areas_disjoint(const struct area *areas, unsigned count, uint64_t segment_bytes)
{
	for (unsigned i = 0; i < count; i++) {
		if (areas[i].bytes > segment_bytes || areas[i].off > segment_bytes - areas[i].bytes)
			return false;
		for (unsigned k = 0; k < i; k++)
			if (areas[i].off < areas[k].off + areas[k].bytes &&
			    areas[k].off < areas[i].off + areas[i].bytes)
				return false;
	}
	return true;
}

static bool all_zero(const uint8_t *bytes, size_t count)
{
	uint8_t rest = 0;

	for (size_t i = 0; i < count; i++)
		rest |= bytes[i];
	return !rest;
}

int segment_check_header(const struct skvc_abi_header *h, uint64_t segment_bytes)
{
	struct area areas[5];

	if (h->magic != SKVC_ABI_MAGIC || h->abi_major != SKVC_ABI_MAJOR)
		return -EPROTO;
	/* A later minor may append to the header; it never makes it shorter. */
	if (h->header_bytes < sizeof(*h) || h->entry_bytes != RING_ENTRY_BYTES)
		return -EPROTO;
	if (h->segment_bytes != segment_bytes)
		return -EPROTO;
	if (!is_power_of_two(h->sq_entries) || h->sq_entries < SKVC_ABI_SQ_ENTRIES_MIN ||
	    h->sq_entries > SKVC_ABI_SQ_ENTRIES_MAX)
		return -EPROTO;
	if (!is_power_of_two(h->cq_entries) || h->cq_entries < 4 * h->sq_entries ||
	    h->cq_entries > 16 * SKVC_ABI_SQ_ENTRIES_MAX)
		return -EPROTO;
	if (h->leases_count > SKVC_ABI_LEASES_MAX)
		return -EPROTO;
	if (h->args_bytes < SKVC_ABI_ARGS_AREA_BYTES_MIN ||
	    h->args_bytes > SKVC_ABI_ARGS_AREA_BYTES_MAX)
		return -EPROTO;
	if (h->sq_off % RING_ENTRY_BYTES || h->cq_off % RING_ENTRY_BYTES ||
	    h->leases_off % RING_ENTRY_BYTES || h->args_off % SKVC_ABI_PAGE_BYTES)
		return -EPROTO;
	if (h->daemon_state != SKVC_ABI_DAEMON_OPEN && h->daemon_state != SKVC_ABI_DAEMON_CLOSED)
		return -EPROTO;
	if (h->abi_minor <= SKVC_ABI_MINOR &&
	    (h->reserved1 || !all_zero(h->reserved0, sizeof(h->reserved0)) ||
	     !all_zero(h->reserved2, sizeof(h->reserved2))))
		return -EPROTO;

	areas[0] = (struct area){ 0, h->header_bytes };
	areas[1] = (struct area){ h->sq_off, (uint64_t)h->sq_entries * RING_ENTRY_BYTES };
	areas[2] = (struct area){ h->cq_off, (uint64_t)h->cq_entries * RING_ENTRY_BYTES };
	areas[3] = (struct area){ h->leases_off,
				  (uint64_t)h->leases_count * sizeof(struct skvc_abi_lease_word) };
	areas[4] = (struct area){ h->args_off, h->args_bytes };
	return areas_disjoint(areas, 5, segment_bytes) ? 0 : -EPROTO;
}
