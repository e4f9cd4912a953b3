/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gpu_kv.h - geometries, contents and layouts of KV blocks that a device is tried with, and what the CPU says
 * each of them is encoded to.  For programs of cmocka.
 */
#ifndef SKVCD_TESTS_LIB_GPU_KV_H
#define SKVCD_TESTS_LIB_GPU_KV_H

#include <stdbool.h>
#include <stdint.h>

#include "gpu/device.h"
#include "tests/lib/rng.h"

#define GPU_KV_POISON 0xa5u
#define GPU_KV_SEGMENTS_MAX 8u

enum gpu_kv_shape {
	GPU_KV_2X4X64,
	GPU_KV_3X8X128,
	GPU_KV_MLA, /* 1 x 576 */
	GPU_KV_4X80,
	GPU_KV_TOKENS64,
	GPU_KV_TOKENS128,  /* of `layer`: every column group a stream, four share their taus */
	GPU_KV_MIXED,	   /* K bf16, V e4m3, each in chunks of their own */
	GPU_KV_OPAQUE,	   /* bytes of unknown meaning beside coded segments */
	GPU_KV_RAGGED,	   /* 3 x 40: no whole rows, for no GPU */
	GPU_KV_MIXED_ROWS, /* both element types in one chunk: for no GPU either */
	GPU_KV_SHAPE_COUNT
};

enum gpu_kv_content {
	GPU_KV_REAL,
	GPU_KV_CONSTANT,
	GPU_KV_RANDOM,
	GPU_KV_ZEROS,
	GPU_KV_SPECIALS, /* NaNs with payloads, infinities, -0, subnormals among real ones */
	GPU_KV_OUTLIERS, /* 2 % of them */
	/* 1 %: few enough that the CPU is content with `channel`, too */
	GPU_KV_RARE_SPECIALS,
	GPU_KV_RARE_OUTLIERS,
	GPU_KV_CONTENT_COUNT
};

enum gpu_kv_layout {
	GPU_KV_PACKED,
	GPU_KV_NHD,
	GPU_KV_HND,
	GPU_KV_GAPS,
	GPU_KV_ODD, /* at multiples of 2 bytes */
	GPU_KV_LAYOUT_COUNT
};

/* One block of each content: raw, and as the CPU codes it. */
struct gpu_kv {
	struct codec_geometry g;
	struct codec_workspace *ws;	  /* owned */
	struct codec_profile *profile[2]; /* owned; fitted on real contents, and on all of them */
	bool regular;			  /* the GPU's kernels can do it */
	uint64_t cap;
	uint8_t *raw[GPU_KV_CONTENT_COUNT];	 /* owned */
	uint8_t *coded[2][GPU_KV_CONTENT_COUNT]; /* owned; with each profile */
	struct codec_info info[2][GPU_KV_CONTENT_COUNT];
	uint8_t *back; /* owned; g.raw_bytes */
};

const char *gpu_kv_shape_name(enum gpu_kv_shape shape);
const char *gpu_kv_content_name(enum gpu_kv_content content);
const char *gpu_kv_layout_name(enum gpu_kv_layout layout);
/* Shapes with element types of their own take no other. */
bool gpu_kv_shape_is_mixed(enum gpu_kv_shape shape);

void gpu_kv_init(struct gpu_kv *kv, enum gpu_kv_shape shape, uint8_t dtype, uint64_t seed);
/* Not before the device is gone that coded with its profiles. */
void gpu_kv_deinit(struct gpu_kv *kv);
/* The CPU makes these bytes of a payload, and they are the block's. */
int gpu_kv_decodes(struct gpu_kv *kv, unsigned profile, const void *payload, uint64_t bytes,
		   enum gpu_kv_content content);

/* Where `blocks` blocks lie in a layout; returns the bytes of all, with some behind them. */
uint64_t gpu_kv_place(const struct codec_geometry *g, enum gpu_kv_layout layout, uint32_t blocks,
		      struct codec_stride *ret_stride, uint64_t *ret_block_stride);
/* Write a raw block's tokens from skip on into an image of the region. */
void gpu_kv_scatter(const struct device_region *r, uint32_t block, uint32_t skip,
		    const uint8_t *raw, uint8_t *image);

#endif
