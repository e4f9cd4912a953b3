/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_predictor.h - what cuda_predictor.c, which codes, cuda_slot.c, which has batches, and cuda_models.c, which has
 * models and prefixes, share; nobody else includes it.  All of it belongs to the predictor's thread, but a sequence
 * that no task has is the lane's.
 *
 * slot   a batch on its way, with a stream: one's copies and waits are hidden by another's kernels
 * room   the GPU memory of a batch of one model; the first comes with the model, more of them when they are wanted, as
 *        long as nothing else has no memory
 */
#ifndef SKVCD_GPU_CUDA_PREDICTOR_H
#define SKVCD_GPU_CUDA_PREDICTOR_H

#include <stdint.h>

#include "gpu/codec/codec.h"
#include "gpu/codec/cuda_codec.h"
#include "gpu/codec/cuda_model_code.h"
#include "gpu/predictor.h"

#define SUMS_MAX 32u /* blocks whose checksums are made at a time */

struct cuda_room { /* owned, all of it */
	struct cuda_model_coder *decoder;
	struct cuda_region *region;  /* `raw` */
	uint8_t *raw;		     /* device: canonical blocks, raw_each from one to the next */
	uint8_t *payload;	     /* device: of each block, raw_each */
	uint8_t *scratch;	     /* device: the codec's, for checksums */
	uint8_t *copy;		     /* device: what it makes beside them; copy_each */
	struct cuda_result *results; /* mapped; behind those of all blocks the next one */
	uint8_t *task_words;	     /* of the checksums' batches, CUDA_TASK_BYTES a block */
	uint8_t *host_raw;	     /* pinned: one block */
	bool taken;		     /* by a slot */
};

struct cuda_resident { /* on the GPU, of one profile */
	struct cuda_resident *next;
	const struct codec_profile *profile; /* borrowed while it has users */
	const struct codec_geometry *geom;   /* likewise */
	unsigned users;			     /* sequences */
	struct cuda_model *m;		     /* owned, like all below */
	struct cuda_model_coder *encoder;    /* NULL before the first ENCODE; one batch at a time */
	struct cuda_room room[PREDICTOR_DEPTH_MAX];
	unsigned rooms, rooms_max; /* there are; may there be */
	uint64_t raw_each, copy_each, off[CODEC_SEGMENTS_MAX];
	unsigned blocks_max; /* of a batch */
};

struct cuda_sequence {
	struct device_sequence base;
	struct cuda_resident *model;	    /* NULL before its first task */
	struct cuda_model_context *context; /* owned; NULL likewise */
	struct cuda_slot *slot;		    /* the last that began with it, while it is under way */
};

struct cuda_slot {
	struct CUstream_st *stream; /* owned, like the next two */
	struct CUevent_st *done;    /* its kernels have changed the prefixes */
	int32_t *ids;		    /* pinned: [batch_tokens], or of one block */
	uint64_t number;	    /* those that began later have a greater one */
	bool begun, encodes;
	struct cuda_resident *model; /* while it is begun, like the next */
	struct cuda_room *room;
	/* the batch, in order of sequences */
	unsigned count, parts_count;
	struct device_task *task[PREDICTOR_BATCH_MAX];
	uint32_t position[PREDICTOR_BATCH_MAX]; /* tokens before each task's */
	struct cuda_model_part part[PREDICTOR_BATCH_MAX];
	struct cuda_model_block block[PREDICTOR_BATCH_MAX];
	struct cuda_model_result result[PREDICTOR_BATCH_MAX];
	struct codec_model_part coded[PREDICTOR_BATCH_MAX];
};

struct cuda_engine {
	struct predictor_engine base;
	int ordinal;
	uint32_t batch_tokens, positions_max;
	struct CUstream_st *stream;   /* owned; of what is not a batch */
	struct cuda_resident *models; /* owned */
	struct codec_workspace *ws;   /* owned */
	uint64_t number;	      /* of the last slot that began */
	struct cuda_slot slot[PREDICTOR_DEPTH_MAX];
	struct cuda_codec_batch sums;
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

/* ---- cuda_models.c: as predictor_engine_ops says ---- */

int cuda_sequence_new(struct predictor_engine *e, const struct codec_geometry *g,
		      const struct codec_profile *profile, struct device_sequence **ret);
uint32_t cuda_sequence_position(const struct device_sequence *s);
void cuda_sequence_truncate(struct device_sequence *s, uint32_t position);
uint64_t cuda_sequence_bytes(const struct device_sequence *s);
void cuda_sequence_end(struct predictor_engine *e, struct device_sequence *s);
/* Will cuda_sequence_ready() have nothing to do? */
bool cuda_sequence_has_room(const struct cuda_engine *c, const struct cuda_sequence *q,
			    uint32_t more);
/*
 * Its model is on the GPU, and there is room for so many tokens more.  Unless there is already, no slot may have begun
 * with a task of it.  -E2BIG, -ENOMEM, -EIO.
 */
int cuda_sequence_ready(struct cuda_engine *c, struct cuda_sequence *q, uint32_t more);
/* What encodes, from now on.  -ENOMEM, -EIO. */
int cuda_resident_encodes(struct cuda_engine *c, struct cuda_resident *m);
/* One that no slot has taken; NULL: there is none, and can be none. */
struct cuda_room *cuda_resident_room(struct cuda_engine *c, struct cuda_resident *m);
struct cuda_resident *cuda_resident_free(struct cuda_resident *m);

/* ---- cuda_slot.c ---- */

int cuda_slot_init(struct cuda_engine *c, struct cuda_slot *s, int priority); /* a CUDA error */
void cuda_slot_deinit(struct cuda_slot *s);
/* Tasks of one op and one model, those of a sequence behind each other.  They are its until it begins or fails them. */
void cuda_slot_take(struct cuda_engine *c, struct cuda_slot *s, struct device_task **tasks,
		    unsigned count);
/* Queues what was taken.  What can't be queued ends here. */
void cuda_slot_begin(struct cuda_engine *c, struct cuda_slot *s);
/* Waits, for those that began before too.  Nothing of the tasks is used any more. */
void cuda_slot_end(struct cuda_engine *c, const struct cuda_slot *s);
void cuda_slots_end(struct cuda_engine *c); /* all of them */

/* A raw block into the task's region, but for what is to be left. */
void cuda_block_out(const struct device_task *t, const uint8_t *raw);
bool cuda_position_good(const struct device_task *t, uint32_t position);

#endif
