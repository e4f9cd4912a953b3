/* SPDX-License-Identifier: Apache-2.0 */
/*
 * import_device.c - see import_device.h.
 */
#include "tests/lib/import_device.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define EXPORT_BYTES (1u << 20)

static struct import_device *self(struct device *d)
{
	return (struct import_device *)d; /* first member */
}

static int fail(struct import_device *d, int res, char *err, const char *text)
{
	if (d->die)
		atomic_store(&d->dead, 1);
	if (err)
		(void)snprintf(err, DEVICE_ERR_BYTES, "%s", text);
	return res;
}

static int find_export(struct import_device *d, const struct device_import *im,
		       struct device_memory *ret)
{
	struct stat st;

	if (im->type == DEVICE_MEMORY_IPC_HANDLE) {
		if (im->handle[0] >= IMPORT_EXPORTS_MAX)
			return -EINVAL;
		ret->base = d->exported[im->handle[0]].base;
		ret->bytes = d->exported[im->handle[0]].bytes;
		return 0;
	}
	if (fstat(im->fd, &st) < 0 || !S_ISREG(st.st_mode))
		return -EINVAL;
	ret->bytes = (uint64_t)st.st_size;
	ret->base = mmap(NULL, ret->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, im->fd, 0);
	ret->mapped = 1;
	return ret->base == MAP_FAILED ? -EINVAL : 0;
}

static void unmap(struct device_memory *memory)
{
	if (memory->mapped)
		(void)munmap(memory->base, memory->bytes);
	memset(memory, 0, sizeof(*memory));
}

static int memory_open(struct device *device, const struct device_import *im,
		       struct device_memory **ret_memory, void **ret_base, char *err)
{
	struct import_device *d = self(device);
	struct device_memory memory = { 0 };
	unsigned idx = 0;

	if (d->fail_memory)
		return fail(d, d->fail_memory, err, "the test said no");
	if (memcmp(im->uuid, d->facts.uuid, DEVICE_UUID_BYTES) != 0)
		return fail(d, -ENODEV, err, "another device");
	if (find_export(d, im, &memory) < 0)
		return fail(d, -EINVAL, err, "not an export");
	if (memory.bytes < im->allocation_bytes) {
		unmap(&memory);
		return fail(d, -ERANGE, err, "the allocation is smaller than claimed");
	}
	while (d->memories[idx].base)
		assert(++idx < IMPORT_OPEN_MAX);
	d->memories[idx] = memory;
	d->memories_open++;
	*ret_memory = &d->memories[idx];
	*ret_base = memory.base;
	return 0;
}

static int lies_in(const struct device_region *r, const struct device_memory *memory)
{
	for (uint32_t i = 0; i < r->geom->segments_count; i++) {
		const uint8_t *at = r->base + r->stride[i].off;

		if (at >= memory->base && at < memory->base + memory->bytes)
			return 1;
	}
	return 0;
}

static void memory_close(struct device *device, struct device_memory *memory)
{
	struct import_device *d = self(device);
	unsigned twins = 0;

	if (!memory)
		return;
	assert(memory->base);
	if (d->on_close)
		d->on_close();
	for (unsigned i = 0; i < IMPORT_OPEN_MAX; i++)
		twins += d->memories[i].base == memory->base;
	/* A region's memory must outlive it, under whichever handle. */
	for (unsigned i = 0; i < IMPORT_OPEN_MAX; i++)
		assert(twins > 1 || !d->regions[i] || !lies_in(d->regions[i], memory));
	unmap(memory);
	d->memories_open--;
}

static int region_open(struct device *device, struct device_region *region)
{
	struct import_device *d = self(device);
	unsigned idx = 0;

	if (d->fail_region)
		return fail(d, d->fail_region, NULL, "");
	while (d->regions[idx])
		assert(++idx < IMPORT_OPEN_MAX);
	d->regions[idx] = region;
	d->regions_open++;
	region->device_private = &d->regions[idx];
	return 0;
}

static void region_close(struct device *device, struct device_region *region)
{
	const struct device_region **entry = region->device_private;

	assert(entry && *entry == region);
	*entry = NULL;
	region->device_private = NULL;
	self(device)->regions_open--;
}

static int event_open(struct device *device, const uint8_t handle[DEVICE_HANDLE_BYTES],
		      struct device_event **ret_event, char *err)
{
	struct import_device *d = self(device);
	unsigned idx = 0;

	if (d->fail_event)
		return fail(d, d->fail_event, err, "no such event");
	while (d->events[idx].open)
		assert(++idx < IMPORT_OPEN_MAX);
	memcpy(d->event_handle, handle, sizeof(d->event_handle));
	d->events[idx].open = 1;
	d->events_open++;
	*ret_event = &d->events[idx];
	return 0;
}

static void event_close(struct device *device, struct device_event *event)
{
	assert(event->open);
	event->open = 0;
	self(device)->events_open--;
}

static int is_dead(struct device *device)
{
	return atomic_load(&self(device)->dead) ? -EIO : 0;
}

void import_device_init(struct import_device *d)
{
	static const struct device_import_ops import = {
		.memory_open = memory_open,
		.memory_close = memory_close,
		.region_open = region_open,
		.region_close = region_close,
		.event_open = event_open,
		.event_close = event_close,
	};
	static const struct device_ops ops = { .name = "import", .dead = is_dead };

	memset(d, 0, sizeof(*d));
	d->device.ops = &ops;
	d->device.import = &import;
	d->facts.staging_bytes = 16u << 20;
	d->facts.block_bytes_max = 5u << 20;
	d->device.facts = &d->facts;
	for (uint8_t i = 0; i < DEVICE_UUID_BYTES; i++)
		d->facts.uuid[i] = (uint8_t)(0xa0 + i);
	for (unsigned i = 0; i < IMPORT_EXPORTS_MAX; i++) {
		d->exported[i].base = aligned_alloc(4096, EXPORT_BYTES);
		d->exported[i].bytes = EXPORT_BYTES;
		assert(d->exported[i].base);
	}
}

void import_device_deinit(struct import_device *d)
{
	assert(!d->memories_open && !d->regions_open && !d->events_open);
	for (unsigned i = 0; i < IMPORT_EXPORTS_MAX; i++)
		free(d->exported[i].base);
}
