/* SPDX-License-Identifier: Apache-2.0 */
/*
 * codec.h - lossless coding of KV blocks: the one door between the codec and the rest.
 *
 * A block is `block_tokens` tokens of every segment of a geometry.  A segment is one tensor's share of
 * a block (one layer's keys, say).  The codec sees a block through a view (base pointer and strides),
 * so that an engine's pages are read and written where they lie, in any layout.
 *
 * This room does no I/O, starts no thread, keeps no global state but the CPU dispatch table, never logs.
 * Everything it reads from an encoded block is hostile and is checked; everything in a geometry or a
 * view has been checked by the caller (codec_geometry_init, device.h).
 */
#ifndef SKVCD_GPU_CODEC_CODEC_H
#define SKVCD_GPU_CODEC_CODEC_H

#include <stddef.h>
#include <stdint.h>

#define CODEC_SEGMENTS_MAX 1024u
#define CODEC_BLOCK_TOKENS_MAX 1024u
#define CODEC_ROW_SCALARS_MAX 65536u	/* heads * head_dim of one segment */
#define CODEC_RAW_BYTES_MAX (64u << 20) /* one block, all segments */
#define CODEC_DIGEST_BYTES 32u
#define CODEC_POSITION_UNKNOWN UINT32_MAX
#define CODEC_LEAF_BYTES 1024u /* of raw bytes under one leaf of the checksum */

enum codec_dtype {		       /* wire values: never renumber */
		   CODEC_DTYPE_U8 = 0, /* bytes of unknown meaning */
		   CODEC_DTYPE_BF16 = 1,
		   CODEC_DTYPE_FP16 = 2,
		   CODEC_DTYPE_E4M3 = 3,
		   CODEC_DTYPE_E5M2 = 4,
		   CODEC_DTYPE_COUNT
};

enum codec_kind {			 /* wire values: never renumber */
		  CODEC_KIND_OPAQUE = 0, /* never predicted: `generic` or `raw` */
		  CODEC_KIND_K = 1,	 /* keys, after RoPE */
		  CODEC_KIND_V = 2,	 /* values */
		  CODEC_KIND_LATENT = 3, /* MLA latent + rope part */
		  CODEC_KIND_COUNT
};

enum codec_speculator { /* wire values: never renumber */
			CODEC_SPEC_RAW = 0,
			CODEC_SPEC_GENERIC = 1, /* byte planes + zstd */
			CODEC_SPEC_CHANNEL = 2, /* static statistics per channel */
			CODEC_SPEC_LAYER = 3,	/* from the exact values of earlier layers */
			CODEC_SPEC_MODEL = 4,	/* from a copy of the model and the whole prefix */
			CODEC_SPEC_COUNT
};

struct codec_segment {
	uint8_t kind;  /* enum codec_kind */
	uint8_t dtype; /* enum codec_dtype */
	uint16_t layer;
	uint16_t heads;	   /* >= 1 */
	uint16_t head_dim; /* elements, >= 1 */
};

/* Immutable after codec_geometry_init; shared by any number of threads. */
struct codec_geometry {
	uint32_t block_tokens;
	uint32_t segments_count;
	uint64_t raw_bytes; /* one block, canonical packing */
	uint32_t chunks_count;
	uint8_t digest[CODEC_DIGEST_BYTES]; /* of everything above; not of any tenant */
	struct codec_segment *segments;	    /* owned, segments_count */
	uint64_t *segment_off;		    /* owned; canonical byte offset of each segment */
	uint32_t *chunk_first_segment;	    /* owned; chunks_count + 1 entries */
};

/* Where one block's segment lies, relative to the view's base.  Elements of one head are contiguous. */
struct codec_stride {
	uint64_t off;	       /* bytes from base to token 0, head 0 */
	uint64_t token_stride; /* bytes */
	uint64_t head_stride;  /* bytes */
};

struct codec_view {
	uint8_t *base;			   /* borrowed for the call */
	const struct codec_stride *stride; /* borrowed; one per segment; NULL: canonical packing */
	uint64_t block_index;		   /* multiplied by block_stride[] below */
	const uint64_t *block_stride;	   /* borrowed; one per segment; NULL when stride is NULL */
	uint32_t skip_tokens;		   /* decode: leave this many leading tokens untouched */
	/* encode: of the block's first token in its sequence, or CODEC_POSITION_UNKNOWN.  A wrong one costs
	 * size, never correctness. */
	uint32_t position;
	/* The prefix that this block follows, borrowed for the call; NULL: unknown, and no MODEL.  A call that
	 * returns 0 has appended the block to it, however that is coded; any other leaves it as it was.
	 * position: the sequence's own (decode: or CODEC_POSITION_UNKNOWN). */
	struct codec_sequence *sequence;
	/* The block's token ids, borrowed; a MODEL whose parameters want ids is not possible without.  Ones that are
	 * not in the vocabulary are as good as none.  decode: only for a sequence of a draft, when MODEL did not code
	 * the block: without them it cannot be appended, -ENODATA. */
	const int32_t *tokens;
	/* encode: what another implementation of MODEL made of this block, which then counts as its own; NULL: none.
	 * Borrowed.  Not verified here. */
	const struct codec_made *made;
	_Atomic(uint32_t) *
		segments_done; /* decode: counts segments written (not yet verified); may be NULL */
};

struct codec_made { /* a payload of MODEL: sequence.h says of what form */
	const void *bytes;
	uint64_t bytes_count;
	uint32_t escapes;
};

struct codec_info {
	uint64_t encoded_bytes;
	uint64_t raw_xxh3;   /* checksum of the raw bytes (format.h), made of XXH3-64 */
	uint32_t chunks_raw; /* chunks that did not shrink or failed to verify */
	uint32_t escapes;    /* scalars outside their token window */
	double ideal_bits;   /* LAYER, MODEL: what the payload takes by its tables */
	uint8_t speculator;  /* what was really used */
};

struct mspec_model; /* model.h, like the next two */
struct mspec_params;
struct mspec_runner;
struct codec_sequence;	/* below */
struct codec_profile;	/* frozen tables, immutable, freed by the owner */
struct codec_fit;	/* statistics being gathered */
struct codec_workspace; /* scratch of one thread */

/* Returns 0, -EINVAL (a bound above or a zero), -ENOMEM.  Copies segments. */
int codec_geometry_init(struct codec_geometry *g, uint32_t block_tokens,
			const struct codec_segment *segments, uint32_t segments_count);
void codec_geometry_deinit(struct codec_geometry *g);
/*
 * 1 when every coded segment is made of whole rows and whole checksum leaves, and of a length that
 * suits kernels which code many rows at a time: columns a multiple of 32, block_tokens of 16, at most
 * 2048 column groups, and for 1-byte elements groups * block_tokens a multiple of 32; and every
 * segment, coded or not, begins at a multiple of 16 bytes.  Else 0.
 */
int codec_geometry_regular(const struct codec_geometry *g);
uint32_t codec_dtype_bytes(uint8_t dtype); /* 1 or 2; 0 when unknown */
const char *codec_speculator_name(uint8_t speculator);
const char *codec_isa_name(void); /* what dispatch chose, a name as below */
/* Force an implementation (tests and benchmarks): "scalar", "avx2", "avx512", "avx512-loads" (AVX-512
 * without its gathers), NULL = best.  -ENOTSUP. */
int codec_isa_set(const char *name);

int codec_workspace_new(struct codec_workspace **ret_ws);
struct codec_workspace *codec_workspace_free(struct codec_workspace *ws);

/* Upper bound of the encoded bytes of one block, for sizing buffers.  Exact for raw + all headers. */
size_t codec_bound(const struct codec_geometry *g);

#define CODEC_ENCODE_VERIFY 1u /* decode each chunk again and compare before keeping it */

/*
 * Encode one block.  A chunk that does not shrink, or does not verify, is kept raw, so encoding never
 * fails for what the data is.  CHANNEL without a profile, and segments of kind OPAQUE or dtype U8, fall
 * back to GENERIC; MODEL falls back to LAYER where the view has no sequence or not the tokens, or that is smaller;
 * LAYER to CHANNEL where the profile has no layer part, the position is unknown, or that is smaller.  Returns
 * 0, -ENOSPC (cap < what is needed), -ENOMEM, -EINVAL (unknown speculator; a sequence of another geometry or at
 * another position), -E2BIG (the sequence is full).
 * The source may change under the call (hostile client): the checksum and the coded bytes both come
 * from one private copy, taken once.
 */
int codec_encode(struct codec_workspace *ws, const struct codec_geometry *g,
		 const struct codec_profile *profile, uint8_t speculator, unsigned flags,
		 const struct codec_view *src, void *out, size_t cap, struct codec_info *ret_info);

/*
 * Decode one block into dst.  Returns 0 only when every byte is right: the raw checksum in the
 * container (and *expect_xxh3 when given) equals that of the decoded bytes.  -EBADMSG: malformed or
 * corrupt; -ESTALE: made with another profile or geometry, by another version of the codec, or after another
 * prefix than dst's sequence (codec_refusal() tells them apart); -ENODEV: its model is not attached to the
 * profile; -E2BIG: the sequence is full; -EINVAL: the sequence is of another geometry; -ENOMEM.  On error dst is
 * unspecified.
 */
int codec_decode(struct codec_workspace *ws, const struct codec_geometry *g,
		 const struct codec_profile *profile, const void *in, size_t in_bytes,
		 const uint64_t *expect_xxh3, const struct codec_view *dst);

enum codec_refusal {
	CODEC_REFUSAL_NONE,
	CODEC_REFUSAL_VERSION,	/* made by another version of the codec */
	CODEC_REFUSAL_GEOMETRY, /* made for another geometry */
	CODEC_REFUSAL_PROFILE,	/* made with another profile */
	CODEC_REFUSAL_MODEL,	/* -ENODEV: the profile's model is not attached */
	CODEC_REFUSAL_PREFIX, /* MODEL: no sequence, or it is of another profile or at another position */
	CODEC_REFUSAL_GUESSES, /* MODEL: whole, but the prefix or the arithmetic is not the encoder's */
	CODEC_REFUSAL_COUNT
};
/* Why the workspace's last decode returned -ESTALE or -ENODEV. */
enum codec_refusal codec_refusal(const struct codec_workspace *ws);
const char *codec_refusal_name(enum codec_refusal refusal); /* for a log line */

/*
 * The same, for a load that continues a cached prefix: the first skip_tokens tokens (at most
 * block_tokens) of the block are decoded and checked, but not written.  segments_done, when given, is
 * set with release order to the number of leading segments written so far.  It runs ahead of the
 * block's checksum, so it is a hint until the call returns 0.
 */
int codec_decode_from(struct codec_workspace *ws, const struct codec_geometry *g,
		      const struct codec_profile *profile, const void *in, size_t in_bytes,
		      const uint64_t *expect_xxh3, const struct codec_view *dst,
		      uint32_t skip_tokens, _Atomic(uint32_t) *segments_done);

/*
 * 0 when every chunk of an encoded block is raw, `channel` or `layer`, so that a device without zstd can
 * decode it; 1 when one is `generic` or `model`, or when the header or the index is not one that this
 * geometry can have (codec_decode says what is wrong).  Looks at the header and the index only, never beyond
 * payload_bytes.
 */
int codec_payload_needs_cpu(const struct codec_geometry *g, const void *payload,
			    uint64_t payload_bytes);

/* The checksum that encoding the block would give.  0 or -ENOMEM. */
int codec_checksum(struct codec_workspace *ws, const struct codec_geometry *g,
		   const struct codec_view *src, uint64_t *ret_sum);

/* One block of a view, as it is, in canonical packing: g->raw_bytes at out. */
void codec_copy_out(const struct codec_geometry *g, const struct codec_view *src, void *out);

/* ---- profiles ---- */

/* Borrows g until free.  -ENOMEM; -E2BIG: too many channels for histograms (262144 at most). */
int codec_fit_new(const struct codec_geometry *g, struct codec_fit **ret_fit);
struct codec_fit *codec_fit_free(struct codec_fit *fit);
/* Blocks beyond what the counters hold (60000 tokens) are ignored. */
void codec_fit_add(struct codec_fit *fit, const struct codec_view *block);
uint64_t codec_fit_tokens(const struct codec_fit *fit);
/* Freeze what was gathered.  -ENODATA: no block was added.  The fit may go on gathering. */
int codec_fit_finish(const struct codec_fit *fit, struct codec_profile **ret_profile);

/*
 * A profile that can do LAYER too: p's statistics, and maps fitted on blocks_count raw blocks (canonical
 * packing) whose first tokens have these positions.  How keys were rotated is found from them.  previous:
 * layers looked back, 1..6; 0: channel means alone.  Takes minutes for large geometries.  -ENODATA: fewer
 * than two blocks; -EINVAL; -E2BIG: layers too wide; -EDOM: the data is degenerate; -ENOMEM.
 */
int codec_profile_fit_layer(const struct codec_geometry *g, const struct codec_profile *p,
			    const void *blocks, const uint32_t *positions, uint32_t blocks_count,
			    uint32_t previous, struct codec_profile **ret_profile);
/* The same, with -ECANCELED soon after another thread has set *cancel: within a step of a second or two. */
int codec_profile_fit_layer_until(const struct codec_geometry *g, const struct codec_profile *p,
				  const void *blocks, const uint32_t *positions,
				  uint32_t blocks_count, uint32_t previous,
				  const _Atomic(uint32_t) *cancel,
				  struct codec_profile **ret_profile);
/* What the layer part of such a profile takes, to within its rotary tables; 0: it cannot be made. */
uint64_t codec_profile_layer_bytes(const struct codec_geometry *g, uint32_t previous);
/* The same profile for a cache whose stored values are those fitted on divided by ratio[segment] (> 0): an fp8
 * cache under another scale.  -ENOMEM. */
int codec_profile_rescale(const struct codec_geometry *g, const struct codec_profile *p,
			  const double *ratio, struct codec_profile **ret_profile);
/*
 * For tests and for measuring speed: a profile with random maps that nobody fitted, and blocks (canonical
 * packing, every coded byte is written) that suit it.  interleaved: how keys are turned.  -EINVAL; -E2BIG;
 * -ENOMEM.
 */
int codec_profile_made(const struct codec_geometry *g, uint32_t previous, int interleaved,
		       uint64_t seed, const uint32_t *positions, uint32_t blocks_count,
		       void *blocks, struct codec_profile **ret_profile);
/* What a profile's layer part is; all 0 when it has none. */
struct codec_layer_info {
	uint32_t previous;	/* layers looked back */
	uint32_t rotary_pairs;	/* of a head; 0: keys are taken as they are */
	double expected_bits;	/* per scalar, on the fitted sample */
	uint64_t weights_bytes; /* of the maps */
	uint64_t products;	/* int8 multiplications a token */
};
struct codec_layer_info codec_profile_layer(const struct codec_profile *p);

/*
 * A profile that can do MODEL too, or with other parameters than it had.  The model of these is attached to it.
 * expected_bits: per scalar, as mspec_fit_bits() tells.  -EINVAL: the geometry is not one of this model, *err
 * says why; -ENOMEM.  A profile made from this one by the calls above has the same parameters and no model.
 */
#define CODEC_ERR_BYTES 160u
int codec_profile_with_model(const struct codec_geometry *g, const struct codec_profile *p,
			     const struct mspec_params *params, double expected_bits,
			     struct codec_profile **ret_profile, char *err, size_t err_bytes);
/*
 * Bind the loaded model to a profile, before any other thread has the profile; m is borrowed until that is
 * freed.  A profile without it does all but MODEL.  -ENODATA: no model part; -ESTALE: it is of another model;
 * -EALREADY: attached before; -EBADMSG: its parameters are damaged; -ENOMEM.
 */
int codec_profile_attach_model(struct codec_profile *p, const struct mspec_model *m);
/* What a profile's model part is; all 0 when it has none. */
struct codec_model_info {
	uint8_t digest[CODEC_DIGEST_BYTES]; /* of the model that it wants */
	uint8_t attached;		    /* 1: it has it */
	uint8_t ids;			    /* 1: blocks carry token ids */
	uint8_t draft;			    /* 1: it is a draft, not the model's copy */
	uint32_t vocab;
	double expected_bits;  /* per scalar, on the fitted sample */
	uint64_t params_bytes; /* in the profile; the model's weights are not */
	uint64_t products;     /* int8 multiplications a token, attention left out */
};
struct codec_model_info codec_profile_model(const struct codec_profile *p);

/* Parse a serialised profile; -EBADMSG (malformed), -ESTALE (other geometry or version), -ENOMEM. */
int codec_profile_parse(const struct codec_geometry *g, const void *buf, size_t buf_bytes,
			struct codec_profile **ret_profile);
struct codec_profile *codec_profile_free(struct codec_profile *p);
const void *codec_profile_bytes(const struct codec_profile *p, size_t *ret_bytes); /* serialised */
const uint8_t *codec_profile_digest(const struct codec_profile *p); /* BLAKE2b-256 of these */
double codec_profile_expected_bits(
	const struct codec_profile *p); /* per scalar, on the fitted sample */

/* ---- sequences, for MODEL ---- */

/*
 * One sequence's prefix: the exact keys and values of the tokens before the next block (a draft's: its own, which
 * follow from the ids), and what it takes to run the model over that block.  One user at a time; codec_view has it
 * take part in a call.  g, profile and runner (NULL: the caller's thread alone) are borrowed until free.  -ENODATA:
 * the profile has no model part; -ENODEV: its model is not attached; -ENOMEM.
 */
int codec_sequence_new(const struct codec_geometry *g, const struct codec_profile *profile,
		       const struct mspec_runner *runner, struct codec_sequence **ret_sequence);
struct codec_sequence *codec_sequence_free(
	struct codec_sequence *s);				  /* accepts NULL, returns NULL */
uint32_t codec_sequence_position(const struct codec_sequence *s); /* tokens that it holds */
/* Forget all but the first `position` tokens; more than it holds is -EINVAL. */
int codec_sequence_truncate(struct codec_sequence *s, uint32_t position);
/*
 * The next block, when no call with the sequence in its view has coded it.  -E2BIG: full; -ENODATA: a draft, and
 * there are no token ids; -ENOMEM.
 */
int codec_sequence_append(struct codec_sequence *s, const struct codec_view *block);
uint64_t codec_sequence_bytes(const struct codec_sequence *s); /* of memory, for its prefix */

/*
 * The token ids in an encoded block: g->block_tokens at ret_tokens.  -ENODATA: it has none; -EBADMSG, -ESTALE as
 * codec_decode, but that the model need not be attached, and the keys and values are not looked at.
 */
int codec_payload_tokens(const struct codec_geometry *g, const struct codec_profile *profile,
			 const void *payload, size_t payload_bytes, int32_t *ret_tokens);

/* What there is of MODEL in an encoded block, for another implementation. */
struct codec_model_part {
	const uint8_t *payload; /* in the block */
	uint64_t payload_bytes;
	uint64_t raw_xxh3; /* of the block */
};

/*
 * -ENODATA: another speculator coded it, or this one not all of it; -EBADMSG, -ESTALE, -ENODEV, with *ret_refusal, as
 * codec_decode(): the header and the index are checked, payloads are not.
 */
int codec_model_payload(const struct codec_geometry *g, const struct codec_profile *profile,
			const void *in, size_t in_bytes, struct codec_model_part *ret,
			uint8_t *ret_refusal);

/*
 * The block that codec_encode() makes of `made`, without a look at what it was made of: raw_xxh3 is that one's.
 * made->bytes may lie in out.
 * -ENODATA: codec_encode() would look for something smaller, or the block has more than MODEL codes; -ENOSPC.
 */
int codec_made_pack(const struct codec_geometry *g, const struct codec_profile *profile,
		    const struct codec_made *made, uint64_t raw_xxh3, void *out, size_t cap,
		    struct codec_info *ret_info);

#endif
