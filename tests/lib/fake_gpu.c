/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fake_gpu.c - the fake daemon's GPU: "device memory" is the memfd whose descriptor came, or zeroes for an
 * IPC handle; events are handles and nothing more.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "ipc/ctl_msg.h"
#include "tests/lib/fake_internal.h"

#define IPC_BYTES_MAX (1u << 20)

static void refuse(struct fake_daemon *d, const struct ctl_header *h, int res, uint16_t reason)
{
	fake_answer_error(d, h->seq, res, reason, "the fake GPU does not take it");
}

static void memory_drop(struct fake_daemon *d, uint32_t idx)
{
	struct fake_memory *m = &d->memory[idx];

	assert(m->holds);
	if (--m->holds)
		return;
	(void)munmap(m->base, m->bytes);
	m->base = NULL;
	atomic_fetch_sub(&d->memories_count, 1);
}

void fake_gpu_drop(struct fake_daemon *d, struct fake_region *region)
{
	if (region->kind == FAKE_EVENT)
		atomic_fetch_sub(&d->events_count, 1);
	for (uint32_t i = 0; i < MEMORIES_MAX; i++)
		if (region->memories & 1u << i)
			memory_drop(d, i);
	region->memories = 0;
}

static void on_memory(struct fake_daemon *d, const struct ctl_memory_gpu *m, int fd)
{
	struct fake_region region = { .kind = FAKE_MEMORY };
	struct fake_memory *memory;
	void *base;
	uint32_t idx = 0;

	while (idx < MEMORIES_MAX && d->memory[idx].base)
		idx++;
	/* An allocation comes with a descriptor exactly when it is one. */
	if (idx == MEMORIES_MAX || (m->memory_type == CTL_MEMORY_POSIX_FD) != (fd >= 0) ||
	    (fake_is(d, FAKE_MEMORY_SECOND) && atomic_load(&d->memories_count))) {
		refuse(d, &m->h, -EINVAL, SKVC_ABI_REASON_BAD_MEMORY);
		return;
	}
	if (fd < 0 && m->allocation_bytes > IPC_BYTES_MAX) {
		refuse(d, &m->h, -ERANGE, SKVC_ABI_REASON_BAD_MEMORY);
		return;
	}
	base = mmap(NULL, m->allocation_bytes, PROT_READ | PROT_WRITE,
		    fd >= 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, fd, 0);
	if (base == MAP_FAILED) {
		refuse(d, &m->h, -EINVAL, SKVC_ABI_REASON_BAD_MEMORY);
		return;
	}
	memory = &d->memory[idx];
	*memory = (struct fake_memory){ base, m->allocation_bytes, 1 };
	atomic_fetch_add(&d->memories_count, 1);
	region.memories = 1u << idx;
	region.memory = idx;
	fake_answer_handle(d, CTL_REGION, m->h.seq, fake_region_new(d, &region));
}

static bool take_strides(struct fake_daemon *d, const struct ctl_region_gpu *m,
			 struct fake_region *region)
{
	const struct fake_region *memory;

	for (uint32_t i = 0; i < (m->strides_count ? m->strides_count : 1); i++) {
		memory = fake_region_find(d, m->strides_count ? m->strides[i].memory : m->memory,
					  FAKE_MEMORY);
		if (!memory)
			return false;
		region->memories |= memory->memories;
		if (!i)
			region->memory = memory->memory;
	}
	region->offset = m->strides_count ? m->strides[0].off : m->offset;
	region->block_stride = m->strides_count ? m->strides[0].block_stride
						: d->ns[region->ns].block_bytes;
	return true;
}

static void on_region(struct fake_daemon *d, const struct ctl_region_gpu *m)
{
	struct fake_region region = { .kind = FAKE_GPU, .ns = m->ns - fake_handle_base(d) };

	if (region.ns >= d->ns_count ||
	    (m->strides_count && m->strides_count != d->ns[region.ns].segments_count) ||
	    !take_strides(d, m, &region)) {
		refuse(d, &m->h, -EINVAL, SKVC_ABI_REASON_BAD_REGION);
		return;
	}
	if (fake_is(d, FAKE_LAYOUT) ||
	    region.offset + (m->blocks_count - 1) * region.block_stride +
			    d->ns[region.ns].block_bytes / d->ns[region.ns].segments_count >
		    d->memory[region.memory].bytes) {
		refuse(d, &m->h, -ERANGE, SKVC_ABI_REASON_BAD_LAYOUT);
		return;
	}
	for (uint32_t i = 0; i < MEMORIES_MAX; i++)
		d->memory[i].holds += region.memories >> i & 1u;
	region.blocks_count = m->blocks_count;
	atomic_fetch_add(&d->regions_count, 1);
	fake_answer_handle(d, CTL_REGION, m->h.seq, fake_region_new(d, &region));
}

static void on_event(struct fake_daemon *d, const struct ctl_event_gpu *m)
{
	const struct fake_region event = { .kind = FAKE_EVENT };

	atomic_fetch_add(&d->events_count, 1);
	fake_answer_handle(d, CTL_REGION, m->h.seq, fake_region_new(d, &event));
}

void fake_on_gpu(struct fake_daemon *d, const struct ctl_header *h, int fd)
{
	if (!atomic_load(&d->gpu)) {
		refuse(d, h, -EOPNOTSUPP, SKVC_ABI_REASON_NONE);
		return;
	}
	switch (h->type) {
	case CTL_MEMORY_GPU:
		on_memory(d, (const struct ctl_memory_gpu *)h, fd);
		break;
	case CTL_REGION_GPU:
		if (fake_is(d, FAKE_LAYOUT_HANGUP))
			fake_disconnect(d);
		else
			on_region(d, (const struct ctl_region_gpu *)h);
		break;
	case CTL_EVENT_GPU:
		on_event(d, (const struct ctl_event_gpu *)h);
		break;
	default:
		refuse(d, h, -EOPNOTSUPP, SKVC_ABI_REASON_NONE);
	}
}
