/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gpu_rig.c - see gpu_rig.h.  The engine's side is plain memory: what is compared is what a GPU would see.
 */
#include "tests/lib/gpu_rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#define ROW_BYTES (RIG_DIM * 2u)
#define SEGMENT_BYTES ((uint64_t)RIG_TOKENS * RIG_HEADS * ROW_BYTES)
#define SEGMENTS (RIG_LAYERS * 2u)

void gpu_rig_config(struct config *ret)
{
	lane_rig_config(ret);
	(void)snprintf(ret->gpu_device, sizeof(ret->gpu_device), "sim");
}

static int memfd_new(uint64_t bytes)
{
	int fd = memfd_create("engine", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
	return fd;
}

static void *view_of(int fd, uint64_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	assert_ptr_not_equal(p, MAP_FAILED);
	return p;
}

static void layout_of(enum gpu_rig_layout layout, struct codec_stride *stride,
		      uint64_t *block_stride)
{
	for (unsigned i = 0; i < SEGMENTS; i++) {
		int packed = layout == GPU_RIG_PACKED, hnd = layout == GPU_RIG_HND;

		block_stride[i] = packed ? SEGMENTS * SEGMENT_BYTES : SEGMENT_BYTES;
		stride[i] = (struct codec_stride){
			.off = packed ? i * SEGMENT_BYTES : i * RIG_PAGES * SEGMENT_BYTES,
			.token_stride = hnd ? ROW_BYTES : RIG_HEADS * ROW_BYTES,
			.head_stride = hnd ? RIG_TOKENS * ROW_BYTES : ROW_BYTES,
		};
	}
}

void gpu_rig_open(struct lane_rig_session *rs, uint32_t handle, enum gpu_rig_layout layout,
		  struct gpu_rig_region *ret)
{
	struct rig *rig = rs->rig;
	struct device *gpu = lane_gpu(rig->lane);
	struct device_import im = { .type = DEVICE_MEMORY_POSIX_FD };
	struct codec_stride stride[SEGMENTS];
	uint64_t block_stride[SEGMENTS];
	char err[DEVICE_ERR_BYTES] = "";
	void *base;

	memset(ret, 0, sizeof(*ret));
	ret->rs = rs;
	ret->handle = handle;
	ret->bytes = RIG_PAGES * SEGMENTS * SEGMENT_BYTES;
	ret->fd = memfd_new(ret->bytes);
	ret->map = view_of(ret->fd, ret->bytes);
	im.fd = ret->fd;
	im.allocation_bytes = ret->bytes;
	memcpy(im.uuid, gpu->facts->uuid, sizeof(im.uuid));
	if (gpu->import->memory_open(gpu, &im, &ret->memory, &base, err) < 0)
		fail_msg("memory_open: %s", err);
	layout_of(layout, stride, block_stride);
	assert_int_equal(device_region_init(&ret->region.dev, &rig->ns.geom, base, ret->bytes,
					    RIG_PAGES, stride, block_stride),
			 0);
	assert_int_equal(gpu->import->region_open(gpu, &ret->region.dev), 0);
	ret->region.ns = &rig->ns;
	ret->region.device = gpu;
	lane_rig_ask(rig,
		     &(struct mail){ .type = LANE_REGION_ADD,
				     .subject = &rs->s,
				     .object = &ret->region,
				     .value = handle },
		     0);
	rs->handle = handle;
}

static void end(struct lane_rig_session *rs, struct region *r, uint32_t handle)
{
	lane_rig_ask(
		rs->rig,
		&(struct mail){
			.type = LANE_REGION_END, .subject = &rs->s, .object = r, .value = handle },
		0);
}

void gpu_rig_end(struct gpu_rig_region *g)
{
	end(g->rs, &g->region, g->handle);
}

void gpu_rig_close(struct gpu_rig_region *g)
{
	struct device *gpu = lane_gpu(g->rs->rig->lane);

	assert_int_equal(g->region.users, 0);
	gpu->import->region_close(gpu, &g->region.dev);
	device_region_deinit(&g->region.dev);
	gpu->import->memory_close(gpu, g->memory);
	(void)munmap(g->map, g->bytes);
	(void)close(g->fd);
}

/* A row of one head as the engine has it. */
static uint8_t *row_at(struct gpu_rig_region *g, uint32_t page, unsigned segment, unsigned token,
		       unsigned head)
{
	const struct device_region *d = &g->region.dev;

	return g->map + d->stride[segment].off + page * d->block_stride[segment] +
	       token * d->stride[segment].token_stride + head * d->stride[segment].head_stride;
}

void gpu_rig_fill(struct gpu_rig_region *g, uint32_t page, uint32_t seed)
{
	static uint16_t raw[SEGMENTS * RIG_TOKENS * RIG_HEADS * RIG_DIM];
	const uint8_t *p = (const uint8_t *)raw;

	lane_rig_make_page(g->rs->rig, seed, raw);
	for (unsigned s = 0; s < SEGMENTS; s++)
		for (unsigned t = 0; t < RIG_TOKENS; t++)
			for (unsigned h = 0; h < RIG_HEADS; h++, p += ROW_BYTES)
				memcpy(row_at(g, page, s, t, h), p, ROW_BYTES);
}

void gpu_rig_wipe(struct gpu_rig_region *g, uint8_t byte)
{
	memset(g->map, byte, g->bytes);
}

int gpu_rig_is_from(struct gpu_rig_region *g, uint32_t page, uint32_t seed, uint32_t skip_tokens,
		    uint8_t byte)
{
	static uint16_t raw[SEGMENTS * RIG_TOKENS * RIG_HEADS * RIG_DIM];
	const uint8_t *p = (const uint8_t *)raw;
	uint8_t untouched[ROW_BYTES];

	memset(untouched, byte, sizeof(untouched));
	lane_rig_make_page(g->rs->rig, seed, raw);
	for (unsigned s = 0; s < SEGMENTS; s++)
		for (unsigned t = 0; t < RIG_TOKENS; t++)
			for (unsigned h = 0; h < RIG_HEADS; h++, p += ROW_BYTES)
				if (memcmp(row_at(g, page, s, t, h),
					   t < skip_tokens ? untouched : p, ROW_BYTES) != 0)
					return 0;
	return 1;
}

int gpu_rig_is(struct gpu_rig_region *g, uint32_t page, uint32_t seed)
{
	return gpu_rig_is_from(g, page, seed, 0, 0);
}

/* ---- events ---- */

void gpu_rig_event_open(struct lane_rig_session *rs, uint32_t handle, struct gpu_rig_event *ret)
{
	struct device *gpu = lane_gpu(rs->rig->lane);
	struct sim_handle h = { .magic = SIM_EVENT_MAGIC, .pid = getpid() };
	uint8_t bytes[DEVICE_HANDLE_BYTES];
	char err[DEVICE_ERR_BYTES] = "";

	memset(ret, 0, sizeof(*ret));
	ret->rs = rs;
	ret->handle = handle;
	ret->fd = memfd_new(SIM_EVENT_BYTES);
	ret->words = view_of(ret->fd, SIM_EVENT_BYTES);
	h.fd = ret->fd;
	memcpy(bytes, &h, sizeof(bytes));
	if (gpu->import->event_open(gpu, bytes, &ret->region.event, err) < 0)
		fail_msg("event_open: %s", err);
	ret->region.device = gpu;
	lane_rig_ask(rs->rig,
		     &(struct mail){ .type = LANE_REGION_ADD,
				     .subject = &rs->s,
				     .object = &ret->region,
				     .value = handle },
		     0);
}

void gpu_rig_event_close(struct gpu_rig_event *e)
{
	struct device *gpu = lane_gpu(e->rs->rig->lane);

	assert_int_equal(e->region.users, 0);
	gpu->import->event_close(gpu, e->region.event);
	(void)munmap(e->words, SIM_EVENT_BYTES);
	(void)close(e->fd);
}

void gpu_rig_event_set(struct gpu_rig_event *e, uint32_t state)
{
	atomic_store_explicit(&e->words->state, state, memory_order_release);
}
