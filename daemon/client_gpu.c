/* SPDX-License-Identifier: Apache-2.0 */
/*
 * client_gpu.c - what a client has on the GPU: allocations, regions whose segments lie in them, events.
 * Control thread.  The device opens them here, while the lane uses it, and that may take milliseconds each;
 * registrations are rare and no load or store waits for this thread.
 *
 * An allocation is open as long as its own handle lives or a region lies in it.  A region or an event is
 * closed only after the lane gave it back (REGION_END, SESSION_GONE): then no task of the device knows
 * it.  Order of undoing: region, then the allocations below it.
 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/client.h"

#define REASON(name) SKVC_ABI_REASON_##name
#define UUID_TEXT_BYTES 41u

_Static_assert((int)CTL_MEMORY_IPC_HANDLE == (int)DEVICE_MEMORY_IPC_HANDLE &&
		       (int)CTL_MEMORY_POSIX_FD == (int)DEVICE_MEMORY_POSIX_FD,
	       "the wire's types are the device's");
_Static_assert(DEVICE_ERR_BYTES < CTL_TEXT_BYTES, "the device's line fits the answer");

static bool device_is_dead(struct device *gpu)
{
	return gpu->ops->dead && gpu->ops->dead(gpu) != 0;
}

static void refuse_dead(struct client *c)
{
	client_refuse(c, -EIO, REASON(DEVICE_GONE),
		      "the GPU has failed; restart the daemon to use GPU memory again");
}

/* The device that serves this client's GPU memory; NULL: none, and the client was told. */
static struct device *gpu_for(struct client *c)
{
	struct device *gpu = c->host->gpu;

	if (c->session.role) {
		client_refuse(c, -EPERM, REASON(ROLE),
			      "a scheduler session has no memory; connect as a worker");
		return NULL;
	}
	if (!gpu || !gpu->import) {
		client_refuse(c, -EOPNOTSUPP, REASON(NONE),
			      "no GPU is served, see [gpu] device in skvcd.conf; register host "
			      "memory instead");
		return NULL;
	}
	if (device_is_dead(gpu)) {
		refuse_dead(c);
		return NULL;
	}
	return gpu;
}

/* The device said no.  Its line goes to the client, unless the device died over it. */
static void refuse_open(struct client *c, struct device *gpu, int res, const char *err)
{
	if (device_is_dead(gpu))
		refuse_dead(c);
	else
		client_refuse(c, res, res == -ENOMEM ? REASON(MEMORY_LIMIT) : REASON(BAD_MEMORY),
			      "%s", err[0] ? err : strerror(-res));
}

/* ---- allocations ---- */

/* As nvidia-smi -L shows it. */
static void uuid_text(const uint8_t uuid[DEVICE_UUID_BYTES], char ret[UUID_TEXT_BYTES])
{
	char *at = ret + snprintf(ret, UUID_TEXT_BYTES, "GPU-");

	for (unsigned i = 0; i < DEVICE_UUID_BYTES; i++)
		at += snprintf(at, (size_t)(ret + UUID_TEXT_BYTES - at), "%s%02x",
			       i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", uuid[i]);
}

static bool is_allocation(const struct region *region)
{
	return region && !region->ns && region->memories_count;
}

static void memory_drop(struct client *c, struct client_memory *memory)
{
	assert(memory->holds);
	if (--memory->holds)
		return;
	c->host->gpu->import->memory_close(c->host->gpu, memory->memory);
	assert(c->memories_count);
	c->memories_count--;
	free(memory);
}

static int memory_allowed(struct client *c, struct device *gpu, const struct ctl_memory_gpu *m)
{
	char theirs[UUID_TEXT_BYTES], ours[UUID_TEXT_BYTES];

	if (memcmp(m->device_uuid, gpu->facts->uuid, DEVICE_UUID_BYTES) != 0) {
		uuid_text(m->device_uuid, theirs);
		uuid_text(gpu->facts->uuid, ours);
		client_refuse(c, -ENODEV, REASON(BAD_MEMORY),
			      "memory of %s, but this daemon serves %s; see [gpu] device", theirs,
			      ours);
		return -ENODEV;
	}
	/* Handles bound those that have one; regions may hold more after theirs was freed. */
	if (c->memories_count >= SESSION_REGIONS_MAX) {
		client_refuse(c, -EDQUOT, REASON(MEMORY_LIMIT),
			      "a session has at most %u allocations open; free regions",
			      SESSION_REGIONS_MAX);
		return -EDQUOT;
	}
	return 0;
}

/* A region that is nothing but its memories. */
static struct region *region_new(uint32_t memories_max)
{
	struct region *region = calloc(1, sizeof(*region));

	if (!region)
		return NULL;
	region->memories = calloc(memories_max, sizeof(struct client_memory *));
	if (region->memories)
		return region;
	free(region);
	return NULL;
}

static void region_hold(struct region *region, struct client_memory *memory)
{
	region->memories[region->memories_count++] = memory;
	memory->holds++;
}

void client_gpu_memory(struct client *c, const struct ctl_memory_gpu *m, int fd)
{
	struct device *gpu = gpu_for(c);
	struct device_import im = {
		.type = m->memory_type,
		.fd = fd,
		.allocation_bytes = m->allocation_bytes,
	};
	struct ctl_region answer = { 0 };
	char err[DEVICE_ERR_BYTES] = "";
	struct client_memory *memory;
	struct region *region;
	void *base = NULL;
	int r;

	if (!gpu || memory_allowed(c, gpu, m) < 0)
		return;
	answer.handle = client_region_slot(c);
	if (!answer.handle)
		return;
	memcpy(im.handle, m->ipc_handle, sizeof(im.handle));
	memcpy(im.uuid, m->device_uuid, sizeof(im.uuid));
	region = region_new(1);
	memory = calloc(1, sizeof(*memory));
	if (!region || !memory) {
		client_refuse(c, -ENOMEM, REASON(MEMORY_LIMIT), "no memory for an allocation");
		goto out;
	}
	r = gpu->import->memory_open(gpu, &im, &memory->memory, &base, err);
	if (r < 0) {
		refuse_open(c, gpu, r, err);
		goto out;
	}
	memory->base = base;
	memory->bytes = m->allocation_bytes;
	c->memories_count++;
	region_hold(region, memory);
	c->regions[answer.handle] = region;
	/* The lane needs no word of it: no job names an allocation. */
	client_answer(c, CTL_REGION, &answer, sizeof(answer), NULL, 0);
	return;
out:
	if (region)
		free(region->memories);
	free(region);
	free(memory);
}

bool client_gpu_memory_free(struct client *c, uint32_t handle)
{
	struct ctl_ok ok = { 0 };

	if (!is_allocation(c->regions[handle]))
		return false;
	client_region_delete(c, c->regions[handle]);
	c->regions[handle] = NULL;
	client_answer(c, CTL_OK, &ok, sizeof(ok), NULL, 0);
	return true;
}

/* ---- regions ---- */

/* One message's layout as the device wants it; the control thread is alone. */
static struct {
	struct codec_stride stride[CTL_SEGMENTS_MAX];
	uint64_t block_stride[CTL_SEGMENTS_MAX];
	uint32_t segment_part[CTL_SEGMENTS_MAX];
	struct device_part parts[CTL_SEGMENTS_MAX];
	struct client_memory *memories[CTL_SEGMENTS_MAX]; /* of the parts */
	uint32_t parts_count;
	uint16_t part_of[SESSION_REGIONS_MAX +
			 1]; /* by handle: index of its part + 1; 0: none yet */
} layout;

/* Which part an allocation's handle is; a new one when it was not named before.  -EINVAL: refused. */
static int part_find(struct client *c, uint32_t handle, uint32_t *ret_part)
{
	struct client_memory *memory;

	if (handle > SESSION_REGIONS_MAX || !is_allocation(c->regions[handle])) {
		client_refuse(c, -EINVAL, REASON(BAD_REGION),
			      "this session has no allocation %u; send MEMORY_GPU first", handle);
		return -EINVAL;
	}
	if (!layout.part_of[handle]) {
		memory = c->regions[handle]->memories[0];
		layout.memories[layout.parts_count] = memory;
		layout.parts[layout.parts_count] = (struct device_part){ .base = memory->base,
									 .bytes = memory->bytes };
		layout.part_of[handle] = (uint16_t)++layout.parts_count;
	}
	*ret_part = layout.part_of[handle] - 1u;
	return 0;
}

static int layout_packed(struct client *c, const struct ctl_region_gpu *m,
			 const struct codec_geometry *g)
{
	uint32_t part;
	int r = part_find(c, m->memory, &part);

	if (r < 0)
		return r;
	if (m->offset >= layout.parts[part].bytes) {
		client_refuse(c, -ERANGE, REASON(BAD_LAYOUT),
			      "offset %" PRIu64 " lies outside the allocation of %" PRIu64 " bytes",
			      m->offset, layout.parts[part].bytes);
		return -ERANGE;
	}
	client_packed_strides(g, layout.stride, layout.block_stride);
	for (uint32_t i = 0; i < g->segments_count; i++) {
		layout.stride[i].off += m->offset; /* both far below 2^63: cannot wrap */
		layout.segment_part[i] = part;
	}
	return 0;
}

static int layout_given(struct client *c, const struct ctl_region_gpu *m)
{
	for (uint32_t i = 0; i < m->strides_count; i++) {
		const struct skvc_abi_gpu_stride *s = &m->strides[i];
		int r = part_find(c, s->memory, &layout.segment_part[i]);

		if (r < 0)
			return r;
		layout.stride[i].off = s->off;
		layout.stride[i].head_stride = s->head_stride;
		layout.stride[i].token_stride = s->token_stride;
		layout.block_stride[i] = s->block_stride;
	}
	return 0;
}

/* A block passes through the device's staging memory, whichever way it goes. */
static int block_fits(struct client *c, const struct device *gpu, const struct codec_geometry *g)
{
	uint64_t most = gpu->facts->block_bytes_max;
	uint64_t enough = g->raw_bytes * gpu->facts->staging_bytes / most;

	if (g->raw_bytes <= most)
		return 0;
	client_refuse(c, -EFBIG, REASON(TOO_LARGE),
		      "a block of %" PRIu64 " bytes, but the GPU's staging takes at most %" PRIu64
		      ": set [gpu] staging to %" PRIu64 "M or more, or use fewer tokens per block",
		      g->raw_bytes, most, enough / (1u << 20) + 1u);
	return -EFBIG;
}

/* Fills `layout`, or refuses. */
static int layout_take(struct client *c, const struct ctl_region_gpu *m)
{
	const struct codec_geometry *g;

	if (m->ns > SESSION_NS_MAX || !c->ns[m->ns]) {
		client_refuse(c, -EINVAL, REASON(BAD_NAMESPACE),
			      "this session has no namespace %u; open it first", m->ns);
		return -EINVAL;
	}
	g = &c->ns[m->ns]->geom;
	if (m->strides_count && m->strides_count != g->segments_count) {
		client_refuse(c, -EINVAL, REASON(BAD_LAYOUT),
			      "%u strides for %u segments; give one each, or none for the packed "
			      "form",
			      m->strides_count, g->segments_count);
		return -EINVAL;
	}
	layout.parts_count = 0;
	memset(layout.part_of, 0, sizeof(layout.part_of));
	return m->strides_count ? layout_given(c, m) : layout_packed(c, m, g);
}

/* `layout` becomes a region that the device knows.  Refuses, and leaves what is to be deleted. */
static int region_build(struct client *c, struct device *gpu, const struct ctl_region_gpu *m,
			struct region *region)
{
	int r;

	for (uint32_t i = 0; i < layout.parts_count; i++)
		region_hold(region, layout.memories[i]);
	r = device_region_init_parts(&region->dev, &c->ns[m->ns]->geom, layout.parts,
				     layout.parts_count, layout.segment_part, m->blocks_count,
				     layout.stride, layout.block_stride);
	if (r < 0) {
		client_refuse(
			c, r, r == -ENOMEM ? REASON(MEMORY_LIMIT) : REASON(BAD_LAYOUT), "%s",
			r == -ERANGE ? "a block of the region ends outside its allocation"
			: r == -EINVAL
				? "strides overlap, are zero, or are no multiple of the element"
				: strerror(-r));
		return r;
	}
	r = gpu->import->region_open(gpu, &region->dev);
	if (r < 0) {
		device_region_deinit(&region->dev);
		refuse_open(c, gpu, r, "the device does not take this layout");
		return r;
	}
	region->ns = c->ns[m->ns];
	region->device = gpu;
	return 0;
}

void client_gpu_region(struct client *c, const struct ctl_region_gpu *m)
{
	struct device *gpu = gpu_for(c);
	struct region *region;
	uint32_t handle;

	if (!gpu || layout_take(c, m) < 0 || block_fits(c, gpu, &c->ns[m->ns]->geom) < 0)
		return;
	handle = client_region_room(c, c->ns[m->ns]->geom.segments_count);
	if (!handle)
		return;
	region = region_new(layout.parts_count);
	if (!region) {
		client_refuse(c, -ENOMEM, REASON(MEMORY_LIMIT), "no memory for a region");
		return;
	}
	if (region_build(c, gpu, m, region) < 0) {
		client_region_delete(c, region);
		return;
	}
	c->strides_count += region->dev.geom->segments_count;
	c->region = region;
	client_ask(c, LANE_REGION_ADD, region, handle);
}

/* ---- events ---- */

void client_gpu_event(struct client *c, const struct ctl_event_gpu *m)
{
	struct device *gpu = gpu_for(c);
	char err[DEVICE_ERR_BYTES] = "";
	struct region *region;
	uint32_t handle;
	int r;

	if (!gpu)
		return;
	handle = client_region_slot(c);
	if (!handle)
		return;
	region = calloc(1, sizeof(*region));
	if (!region) {
		client_refuse(c, -ENOMEM, REASON(MEMORY_LIMIT), "no memory for an event");
		return;
	}
	r = gpu->import->event_open(gpu, m->ipc_event, &region->event, err);
	if (r < 0) {
		refuse_open(c, gpu, r, err);
		free(region);
		return;
	}
	region->device = gpu;
	c->region = region;
	client_ask(c, LANE_REGION_ADD, region, handle);
}

void client_gpu_close(struct client *c, struct region *region)
{
	struct device *gpu = region->device;

	assert(gpu || !region->event);
	if (gpu && region->ns)
		gpu->import->region_close(gpu, &region->dev);
	if (gpu && region->event)
		gpu->import->event_close(gpu, region->event);
	while (region->memories_count)
		memory_drop(c, region->memories[--region->memories_count]);
	free(region->memories);
}
