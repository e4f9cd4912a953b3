/* SPDX-License-Identifier: Apache-2.0 */
/*
 * internal.h - what the codec's own files share; nobody outside gpu/codec includes it, but its tests.
 */
#ifndef SKVCD_GPU_CODEC_INTERNAL_H
#define SKVCD_GPU_CODEC_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gpu/codec/codec.h"
#include "gpu/codec/core.h"
#include "gpu/codec/format.h"
#include "gpu/codec/residual.h"

/* A chunk is consecutive segments of one sort (coded or not) until it holds this many scalars: the
 * states cost about 100 bytes a chunk, 0.05 bits per scalar at this size. */
#define CODEC_CHUNK_SCALARS_MIN 16384u
#define CODEC_WORDS_SLACK 32u /* vector stores may reach below the first word */

/* One segment as the channel kernels see it.  Column arrays are padded to whole rows. */
struct codec_run {
	uint32_t tokens_count;
	uint32_t columns; /* heads * head_dim */
	uint32_t rows_per_token;
	uint8_t bits; /* 16 or 8 */
	uint8_t shift;
	uint8_t context;
	const uint16_t *top; /* borrowed from the profile, like the next three */
	const uint16_t *width;
	const uint16_t *flip;  /* 0 or 1 */
	const uint16_t *table; /* first table of the channel */
};

struct codec_profile {
	uint8_t *serial; /* owned, the frozen bytes */
	size_t serial_bytes;
	uint8_t digest[CODEC_DIGEST_BYTES];
	uint8_t geometry_digest[CODEC_DIGEST_BYTES];
	uint32_t tables_count;
	uint32_t segments_count;
	double expected_bits;
	struct codec_run *runs;	     /* owned, one per segment; columns 0: not coded */
	uint16_t *columns;	     /* owned, behind the runs' arrays */
	uint32_t *dec;		     /* owned, tables_count * CODEC_PROB_SUM */
	uint64_t *enc;		     /* owned, tables_count * CODEC_TOKENS_PITCH */
	struct layer_profile *layer; /* owned, looks into serial; NULL: no such section */
	struct model_profile *model; /* owned, looks into serial; NULL: no such section */
	uint64_t tokens_fitted;
};

/* Two streams at once hide the decoder's latency; more ran out of registers. */
#define CODEC_STREAMS_MAX 2u

struct codec_stream { /* one chunk's coded tokens, to be decoded */
	const struct codec_run *runs;
	uint32_t runs_count;
	const uint8_t *words; /* hostile, maybe unaligned */
	uint32_t words_count;
	uint32_t states[CODEC_LANES]; /* in: as stored; out: at the end */
	uint8_t *tokens;
	int res; /* out: 0, or -EBADMSG: not exactly words_count */
};

/* A segment's bytes as the checksum takes them. */
struct codec_leaf_shape {
	uint32_t tokens_count;
	uint32_t columns;
	uint32_t element_bytes;
	bool coded; /* in coded order, else as they lie */
};

struct layer_turn;
struct residual_segment;
struct residual_list;
struct residual_weight;
struct residual_stream;

/* Kernels.  Every implementation gives the same bytes as cpu_scalar.c. */
struct codec_kernels {
	const char *name;
	bool (*supported)(void);
	/* Canonical bytes of one run -> tokens in coded order (rows * 32; 0 where there is no column) and
	 * low bits.  Bit b of lane l's stream is bit b % 32 of low[b / 32 * 32 + l]; the run's bits
	 * begin at low_bit, bits before that are kept.  Returns the number of escapes. */
	uint32_t (*tokenize)(const struct codec_run *run, const uint8_t *raw, uint8_t *tokens,
			     uint32_t *low, size_t low_bit);
	/* Code the tokens of consecutive runs, last first; words grow down from end.  At least
	 * CODEC_WORDS_SLACK more words than scalars lie below it.  Returns the first word. */
	uint16_t *(*encode)(const struct codec_profile *p, const struct codec_run *runs,
			    uint32_t runs_count, const uint8_t *tokens, uint32_t *states,
			    uint16_t *end);
	/* Decode 1..CODEC_STREAMS_MAX streams. */
	void (*decode)(const struct codec_profile *p, struct codec_stream *streams,
		       uint32_t streams_count);
	/* The inverse of tokenize.  Takes patterns, of the run's element size, from *escapes on, at
	 * most escapes_count, and returns how many there were (more than escapes_count: malformed). */
	uint32_t (*rebuild)(const struct codec_run *run, const uint8_t *tokens, const uint32_t *low,
			    size_t low_bit, const uint8_t *escapes, uint32_t escapes_count,
			    uint8_t *raw);
	/* Canonical bytes of one segment -> its leaves of the checksum. */
	void (*leaves)(const struct codec_leaf_shape *shape, const uint8_t *raw, uint64_t *leaves);
	/* The residual coder, of one group of 32 columns: residual_rows.h.  Add each token's errors. */
	void (*residual_errors)(const struct residual_segment *s, uint32_t group,
				const uint8_t *patterns, uint64_t *sums);
	/* Append a row for each token to the list, which has room, and add to its weight. */
	void (*residual_symbols)(const struct residual_segment *s, uint32_t group,
				 const uint8_t *patterns, const uint8_t *tau,
				 struct residual_list *list, struct residual_weight *weight);
	/* Code all rows, last first; words grow down from end, and CODEC_WORDS_SLACK more than can
	 * come of the list lie below.  Returns the first word. */
	uint16_t *(*residual_code)(const struct residual_list *list, uint32_t *state,
				   uint16_t *end);
	/* -EBADMSG: too few words. */
	int (*residual_decode)(struct residual_stream *st, const struct residual_segment *s,
			       uint32_t group, const uint8_t *tau, uint8_t *patterns);
	/* layer_rows.inc: n or `pairs` elements of a token's row. */
	void (*layer_values)(struct residual_type t, const uint8_t *patterns, uint32_t n,
			     int32_t *ret);
	void (*layer_inputs)(const int32_t *values, const uint32_t *in_mul, uint32_t n,
			     int8_t *ret);
	void (*layer_outputs)(const int32_t *bias, const int32_t *mul, const uint8_t *shift,
			      uint32_t n, int32_t *row);
	void (*layer_turn)(const struct layer_turn *turns, uint32_t pairs, int32_t sign,
			   int32_t *__restrict a, int32_t *__restrict b);
	/* product.h */
	void (*product_i8)(const int8_t *a, size_t a_pitch, const int8_t *w, uint32_t rows,
			   uint32_t outputs, uint32_t k, int32_t *out);
};

extern const struct codec_kernels codec_kernels_scalar;
extern const struct codec_kernels codec_kernels_avx2;
extern const struct codec_kernels codec_kernels_avx512;
extern const struct codec_kernels codec_kernels_avx512_loads;
const struct codec_kernels *codec_kernels_get(void);

/* Parts of the scalar kernels that the others use: rows for partial groups and at the end of the words,
 * whole partial groups of columns (raw and tokens are those of the run's start and of the group's). */
uint16_t *codec_scalar_encode_row(const struct codec_profile *p, const uint16_t *table,
				  const uint8_t *previous, const uint8_t *tokens, uint32_t lanes,
				  uint32_t *states, uint16_t *end);
int64_t codec_scalar_decode_row(const struct codec_profile *p, const uint16_t *table,
				const uint8_t *previous, uint32_t lanes, const uint8_t *words,
				uint32_t words_left, uint32_t *states, uint8_t *tokens);
uint32_t codec_scalar_tokenize_group(const struct codec_run *run, uint32_t group,
				     const uint8_t *raw, uint8_t *tokens, uint32_t *low,
				     size_t low_bit);
uint32_t codec_scalar_rebuild_group(const struct codec_run *run, uint32_t group,
				    const uint8_t *tokens, const uint32_t *low, size_t low_bit,
				    const uint8_t *escapes, uint32_t escapes_count, uint8_t *raw);

/* product*.c, for the kernels' tables */
void product_scalar_i8(const int8_t *a, size_t a_pitch, const int8_t *w, uint32_t rows,
		       uint32_t outputs, uint32_t k, int32_t *out);
void product_avx2_i8(const int8_t *a, size_t a_pitch, const int8_t *w, uint32_t rows,
		     uint32_t outputs, uint32_t k, int32_t *out);
void product_avx512_i8(const int8_t *a, size_t a_pitch, const int8_t *w, uint32_t rows,
		       uint32_t outputs, uint32_t k, int32_t *out);

/* layer_rows*.c, likewise */
void layer_scalar_values(struct residual_type t, const uint8_t *patterns, uint32_t n, int32_t *ret);
void layer_scalar_inputs(const int32_t *values, const uint32_t *in_mul, uint32_t n, int8_t *ret);
void layer_scalar_outputs(const int32_t *__restrict bias, const int32_t *__restrict mul,
			  const uint8_t *__restrict shift, uint32_t n, int32_t *row);
void layer_scalar_turn(const struct layer_turn *turns, uint32_t pairs, int32_t sign,
		       int32_t *__restrict a, int32_t *__restrict b);
void layer_avx2_values(struct residual_type t, const uint8_t *patterns, uint32_t n, int32_t *ret);
void layer_avx2_inputs(const int32_t *values, const uint32_t *in_mul, uint32_t n, int8_t *ret);
void layer_avx2_outputs(const int32_t *__restrict bias, const int32_t *__restrict mul,
			const uint8_t *__restrict shift, uint32_t n, int32_t *row);
void layer_avx2_turn(const struct layer_turn *turns, uint32_t pairs, int32_t sign,
		     int32_t *__restrict a, int32_t *__restrict b);
void layer_avx512_values(struct residual_type t, const uint8_t *patterns, uint32_t n, int32_t *ret);
void layer_avx512_inputs(const int32_t *values, const uint32_t *in_mul, uint32_t n, int8_t *ret);
void layer_avx512_outputs(const int32_t *__restrict bias, const int32_t *__restrict mul,
			  const uint8_t *__restrict shift, uint32_t n, int32_t *row);
void layer_avx512_turn(const struct layer_turn *turns, uint32_t pairs, int32_t sign,
		       int32_t *__restrict a, int32_t *__restrict b);

/* residual_*.c, likewise */
void residual_scalar_errors(const struct residual_segment *s, uint32_t group,
			    const uint8_t *patterns, uint64_t *sums);
void residual_scalar_symbols(const struct residual_segment *s, uint32_t group,
			     const uint8_t *patterns, const uint8_t *tau,
			     struct residual_list *list, struct residual_weight *weight);
uint16_t *residual_scalar_code(const struct residual_list *list, uint32_t *state, uint16_t *end);
int residual_scalar_decode(struct residual_stream *st, const struct residual_segment *s,
			   uint32_t group, const uint8_t *tau, uint8_t *patterns);
void residual_avx2_errors(const struct residual_segment *s, uint32_t group, const uint8_t *patterns,
			  uint64_t *sums);
void residual_avx2_symbols(const struct residual_segment *s, uint32_t group,
			   const uint8_t *patterns, const uint8_t *tau, struct residual_list *list,
			   struct residual_weight *weight);
uint16_t *residual_avx2_code(const struct residual_list *list, uint32_t *state, uint16_t *end);
int residual_avx2_decode(struct residual_stream *st, const struct residual_segment *s,
			 uint32_t group, const uint8_t *tau, uint8_t *patterns);
void residual_avx512_errors(const struct residual_segment *s, uint32_t group,
			    const uint8_t *patterns, uint64_t *sums);
void residual_avx512_symbols(const struct residual_segment *s, uint32_t group,
			     const uint8_t *patterns, const uint8_t *tau,
			     struct residual_list *list, struct residual_weight *weight);
uint16_t *residual_avx512_code(const struct residual_list *list, uint32_t *state, uint16_t *end);
int residual_avx512_decode(struct residual_stream *st, const struct residual_segment *s,
			   uint32_t group, const uint8_t *tau, uint8_t *patterns);
void residual_avx512_loads_errors(const struct residual_segment *s, uint32_t group,
				  const uint8_t *patterns, uint64_t *sums);
void residual_avx512_loads_symbols(const struct residual_segment *s, uint32_t group,
				   const uint8_t *patterns, const uint8_t *tau,
				   struct residual_list *list, struct residual_weight *weight);
uint16_t *residual_avx512_loads_code(const struct residual_list *list, uint32_t *state,
				     uint16_t *end);
int residual_avx512_loads_decode(struct residual_stream *st, const struct residual_segment *s,
				 uint32_t group, const uint8_t *tau, uint8_t *patterns);

static inline uint32_t codec_group_lanes(const struct codec_run *run, uint32_t group)
{
	uint32_t left = run->columns - group * CODEC_LANES;

	return left < CODEC_LANES ? left : CODEC_LANES;
}

struct codec_slot {   /* scratch of one chunk */
	uint8_t *raw; /* private copy, or what was decoded */
	uint8_t *tokens;
	uint32_t *low; /* low bits, rows of 32 words */
	size_t raw_cap, tokens_cap, low_cap;
};

struct codec_workspace { /* grown on demand, one thread's */
	struct codec_slot slot[CODEC_STREAMS_MAX];
	uint16_t *words;
	uint8_t *coded;	  /* a chunk's payload */
	uint8_t *split;	  /* byte planes of `generic` */
	uint8_t *check;	  /* a chunk decoded again */
	uint64_t *leaves; /* of the block's checksum, as far as it was looked at */
	size_t words_cap, coded_cap, split_cap, check_cap, leaves_cap;
	size_t leaves_count;
	uint8_t *block;	    /* predicted: the private copy of a block, or what was decoded of it */
	uint8_t *predicted; /* its payload */
	uint8_t *kept;	    /* another one, the best so far */
	size_t block_cap, predicted_cap, kept_cap;
	size_t predicted_bytes, kept_bytes;
	uint8_t refusal;    /* enum codec_refusal, of the last decode */
	bool block_whole;   /* decoding: chunks that are not predicted go to block as well */
	bool predicted_all; /* decoding: no coded chunk may be anything else, the sequence has them */
	bool predicted_ready;  /* chunks of coded segments are in block */
	bool predicted_stored; /* one of them has taken the payload along */
	struct layer_workspace *layer;
	void *zstd_c;
	void *zstd_d;
};

/* Grow *buf to at least bytes; the contents are lost.  0 or -ENOMEM. */
int codec_workspace_grow(void **buf, size_t *cap, size_t bytes);

/* geometry.c */
bool codec_segment_coded(const struct codec_segment *s);
uint32_t codec_segment_columns(const struct codec_segment *s);
uint64_t codec_segment_bytes(const struct codec_geometry *g, uint32_t segment);
uint64_t codec_chunk_bytes(const struct codec_geometry *g, uint32_t chunk);
unsigned codec_dtype_shift(uint8_t dtype); /* mantissa bits - 2, at least 0 */
void codec_gather(const struct codec_geometry *g, const struct codec_view *v, uint32_t segment,
		  uint8_t *dst);
void codec_scatter(const struct codec_geometry *g, const struct codec_view *v, uint32_t segment,
		   uint32_t skip_tokens, const uint8_t *src);

/* channel.c.  Encode codes slot->raw and leaves the payload in ws->coded. */
int codec_channel_encode(struct codec_workspace *ws, struct codec_slot *slot,
			 const struct codec_geometry *g, const struct codec_profile *p,
			 uint32_t chunk, size_t *ret_bytes, uint32_t *ret_escapes,
			 uint32_t *ret_escape_bytes);
/* Decoding is in three steps, so that several streams can go through the middle one together: check
 * the payload and set up its stream, kernels->decode, then the patterns. */
int codec_channel_open(struct codec_slot *slot, const struct codec_geometry *g,
		       const struct codec_profile *p, uint32_t chunk, const uint8_t *in,
		       size_t in_bytes, uint32_t escape_bytes, struct codec_stream *ret_stream);
int codec_channel_close(struct codec_slot *slot, const struct codec_geometry *g,
			const struct codec_profile *p, uint32_t chunk, uint32_t escape_bytes,
			const struct codec_stream *stream, uint8_t *out);

/* generic.c: likewise, without a stream. */
int codec_generic_encode(struct codec_workspace *ws, const struct codec_slot *slot,
			 const struct codec_geometry *g, uint32_t chunk, size_t *ret_bytes);
int codec_generic_decode(struct codec_workspace *ws, const struct codec_geometry *g, uint32_t chunk,
			 const uint8_t *in, size_t in_bytes, uint8_t *out);

/* predicted.c.  Can this speculator code a block of src as a whole? */
bool codec_predicted_can(const struct codec_profile *profile, uint8_t speculator,
			 const struct codec_view *src);
/*
 * Encode ws->block by the best of these speculators that can, from this one down, into ws->predicted;
 * info->speculator is what it was.  Returns an outcome below, or -ENOMEM.  MODEL, when it was tried with success,
 * has appended to src's sequence.
 */
enum { CODEC_PREDICTED_NONE, CODEC_PREDICTED_POOR, CODEC_PREDICTED_GOOD };
int codec_predicted_encode(struct codec_workspace *ws, const struct codec_geometry *g,
			   const struct codec_profile *profile, uint8_t speculator, unsigned flags,
			   const struct codec_view *src, struct codec_info *info);
/*
 * in: an encoded block whose header was checked, made by LAYER or MODEL; the latter takes s and appends to it.
 * Coded segments into ws->block.
 */
int codec_predicted_decode(struct codec_workspace *ws, const struct codec_geometry *g,
			   const struct codec_profile *profile, struct codec_sequence *s,
			   const uint8_t *in, size_t in_bytes);
/* The payload that predicted chunks of such a block share.  -EBADMSG: none. */
int codec_predicted_payload(const struct codec_geometry *g, const uint8_t *in, size_t in_bytes,
			    const uint8_t **ret_payload, size_t *ret_bytes);

/* profile.c */
size_t codec_profile_serial_bytes(const struct codec_geometry *g, uint32_t tables_count);
int codec_profile_from_serial(const struct codec_geometry *g, uint8_t *serial, size_t serial_bytes,
			      struct codec_profile **ret_profile); /* takes serial on success */
uint8_t *codec_serial_alloc(size_t bytes);
/* A serialised profile's channel statistics, for stored values that are divided by ratio[segment]. */
void codec_profile_rescale_channels(const struct codec_geometry *g, uint8_t *serial,
				    const double *ratio);
/* p with this section instead of the one of its sort that it has, if any. */
int codec_profile_with_layer(const struct codec_geometry *g, const struct codec_profile *p,
			     const uint8_t *section, size_t section_bytes,
			     struct codec_profile **ret_profile);
int codec_profile_with_model_section(const struct codec_geometry *g, const struct codec_profile *p,
				     const uint8_t *section, size_t section_bytes,
				     struct codec_profile **ret_profile);

/* container.c: a block's header is of this geometry, and of this profile.  -EBADMSG, -ESTALE. */
int codec_header_check_geometry(const struct codec_geometry *g, const struct format_block_header *h,
				size_t in_bytes);
int codec_header_check_profile(const struct codec_geometry *g, const struct codec_profile *profile,
			       const struct format_block_header *h);
/* Both, and -ENODEV: its model is not attached; with -ESTALE and -ENODEV *ret_refusal says more. */
int codec_header_check(const struct codec_geometry *g, const struct codec_profile *profile,
		       const struct format_block_header *h, size_t in_bytes, uint8_t *ret_refusal);
/* All but its lengths and the checksum. */
void codec_header_fill(struct format_block_header *h, const struct codec_geometry *g,
		       const struct codec_profile *profile, uint8_t speculator);

#endif
