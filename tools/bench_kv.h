/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_kv.h - real KV cache for the benchmarks: dumps (safetensors; tensors k.<layer> and v.<layer> of
 * [tokens, heads, dim]) cut into blocks as the daemon does, and as many blocks as wanted made of them.
 */
#ifndef SKVCD_TOOLS_BENCH_KV_H
#define SKVCD_TOOLS_BENCH_KV_H

#include <stdbool.h>
#include <stdint.h>

#include "gpu/codec/codec.h"

#define KV_LAYERS_MAX (CODEC_SEGMENTS_MAX / 2u)

/* A dump, cut into blocks in canonical packing. */
struct kv_dump {
	struct codec_geometry g;
	uint8_t *blocks;     /* owned, blocks_count * g.raw_bytes */
	uint32_t *positions; /* owned: of each block's first token in its sequence */
	double *scales; /* owned, per segment: stored value * scale = value; 1 where the dump has none */
	uint32_t blocks_count;
	uint32_t layers;
	uint64_t tokens;   /* of whole blocks */
	const char *dtype; /* static string */
};

/* 0 or -errno, after a line on stderr.  At least two blocks; only those inside one sequence. */
int kv_dump_read(const char *path, uint32_t block_tokens, struct kv_dump *d);
void kv_dump_deinit(struct kv_dump *d); /* zero-initialised is fine */

enum kv_shape {
	KV_SHAPE_FILE,	/* as the dump */
	KV_SHAPE_LLAMA, /* Llama-3.1-8B: 32 layers, 8 heads of 128: 2 MiB for 16 tokens of bf16 */
	KV_SHAPE_QWEN3_8B, /* the same with 36 layers */
	KV_SHAPE_COUNT
};

/* 0, or -EINVAL: no such name ("file", "llama", "qwen3-8b"). */
int kv_shape_parse(const char *name, enum kv_shape *ret_shape);

/*
 * Blocks without end out of a dump.  Each channel of the shape is always fed by the same channel of the
 * dump, so that a channel's statistics stay real; which of the dump's blocks feeds which part of a
 * block changes from block to block.
 */
struct kv_tile {
	const struct kv_dump *source; /* borrowed */
	enum kv_shape shape;
	struct codec_geometry g;
};

int kv_tile_init(struct kv_tile *t, const struct kv_dump *source, enum kv_shape shape);
void kv_tile_deinit(struct kv_tile *t);
/* What is measured is not what was fitted on: where there is one dump only, each has a half of it. */
enum kv_part { KV_ALL, KV_FIRST_HALF, KV_SECOND_HALF };

/* g.raw_bytes at out, canonical packing, from that part of the dump. */
void kv_tile_block(const struct kv_tile *t, enum kv_part part, uint64_t index, uint8_t *out);

/* Make a dump one of this shape, of blocks_count blocks; nothing to do for KV_SHAPE_FILE.  halves: its
 * first half comes from the first half of d, and so on.  On failure d is as it was. */
int kv_dump_reshape(struct kv_dump *d, enum kv_shape shape, uint32_t blocks_count, bool halves);

#endif
