/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_predictor.h - what cuda_predictor.c, which codes, and cuda_models.c, which has models and prefixes, share;
 * nobody else includes it.  All of it belongs to the predictor's thread, but a sequence that no task has is the lane's.
 */
#ifndef SKVCD_GPU_CUDA_PREDICTOR_H
#define SKVCD_GPU_CUDA_PREDICTOR_H

#include <stdint.h>

#include "gpu/codec/codec.h"
#include "gpu/codec/cuda_codec.h"
#include "gpu/codec/cuda_model_code.h"
#include "gpu/predictor.h"

#define SUMS_MAX 32u /* blocks whose checksums are made at a time */

struct cuda_resident { /* on the GPU, of one profile */
	struct cuda_resident *next;
	const struct codec_profile *profile; /* borrowed while it has users */
	const struct codec_geometry *geom;   /* likewise */
	unsigned users;			     /* sequences */
	struct cuda_model *m;		     /* owned, like all below */
	struct cuda_model_coder *decoder;
	struct cuda_model_coder *encoder; /* NULL before the first ENCODE */
	struct cuda_region *region;	  /* `raw` */
	uint8_t *raw;		     /* device: canonical blocks, raw_each from one to the next */
	uint8_t *payload;	     /* device: of each block, raw_each */
	uint8_t *scratch;	     /* device: the codec's, for checksums */
	uint8_t *copy;		     /* device: what it makes beside them; copy_each */
	struct cuda_result *results; /* mapped */
	uint8_t *host_raw;	     /* pinned: one block */
	uint64_t raw_each, copy_each, off[CODEC_SEGMENTS_MAX];
	unsigned blocks_max; /* of a batch */
};

struct cuda_sequence {
	struct device_sequence base;
	struct cuda_resident *model;	    /* NULL before its first task */
	struct cuda_model_context *context; /* owned; NULL likewise */
	uint32_t before;		    /* tokens, when the batch began */
};

struct cuda_engine {
	struct predictor_engine base;
	int ordinal;
	uint32_t batch_tokens, positions_max;
	struct CUstream_st *stream;   /* owned */
	struct cuda_resident *models; /* owned */
	struct codec_workspace *ws;   /* owned */
	/* a batch, in order of sequences */
	unsigned count, parts_count;
	struct device_task *task[PREDICTOR_BATCH_MAX];
	struct cuda_model_part part[PREDICTOR_BATCH_MAX];
	struct cuda_model_block block[PREDICTOR_BATCH_MAX];
	struct cuda_model_result result[PREDICTOR_BATCH_MAX];
	struct codec_model_part coded[PREDICTOR_BATCH_MAX];
	struct cuda_codec_batch sums;
	int32_t *ids; /* owned, [batch_tokens], or of one block */
};

static inline struct cuda_sequence *cuda_sequence_of(const struct device_sequence *s)
{
	return (struct cuda_sequence *)(uintptr_t)s;
}

static inline struct cuda_engine *cuda_engine_of(struct predictor_engine *e)
{
	return (struct cuda_engine *)e;
}

void cuda_engine_enter(const struct cuda_engine *c); /* its device is the calling thread's */
int cuda_engine_told(struct cuda_engine *c,
		     int cuda_error); /* as a negative errno; dead, when the context is lost */
unsigned cuda_engine_blocks(uint32_t tokens,
			    const struct codec_geometry *g); /* of a batch of so many */

/* cuda_models.c: as predictor_engine_ops says */
int cuda_sequence_new(struct predictor_engine *e, const struct codec_geometry *g,
		      const struct codec_profile *profile, struct device_sequence **ret);
uint32_t cuda_sequence_position(const struct device_sequence *s);
void cuda_sequence_truncate(struct device_sequence *s, uint32_t position);
uint64_t cuda_sequence_bytes(const struct device_sequence *s);
void cuda_sequence_end(struct predictor_engine *e, struct device_sequence *s);
/* Its model is on the GPU, and there is room for so many tokens more.  -E2BIG, -ENOMEM, -EIO. */
int cuda_sequence_ready(struct cuda_engine *c, struct cuda_sequence *q, uint32_t more);
/* What encodes, from now on.  A CUDA error. */
int cuda_resident_encodes(struct cuda_engine *c, struct cuda_resident *m);
struct cuda_resident *cuda_resident_free(struct cuda_resident *m);

#endif
