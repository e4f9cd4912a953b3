/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_profile.h - the `model` speculator's part of a profile.
 *
 * Section of a profile (format.h says where sections lie), little endian:
 *
 *   header      struct model_section
 *   parameters  their serial form (model_params.c), params_bytes
 *               zeros to a multiple of 64 bytes
 *
 * It can be read, kept and passed on without the model.  Only with it can the parameters themselves be
 * checked, and be used: model_profile_attach().
 */
#ifndef SKVCD_GPU_CODEC_MODEL_PROFILE_H
#define SKVCD_GPU_CODEC_MODEL_PROFILE_H

#include "gpu/codec/internal.h"
#include "gpu/codec/model.h"

#define MODEL_SECTION_MAGIC 0x4c444f4du /* "MODL" */
#define MODEL_SECTION_VERSION 1u
#define MODEL_SECTION_ALIGN 64u

struct model_section {
	uint32_t magic;
	uint16_t version;
	uint16_t reserved;
	uint64_t bytes; /* of the section */
	uint32_t layers;
	uint32_t kv_heads;
	uint32_t head_dim;
	uint32_t vocab;
	uint64_t params_bytes;
	uint64_t products;	    /* of a token */
	uint32_t expected_bits_q16; /* per scalar, on the fitted sample */
	uint8_t zeros[12];
	uint8_t model_digest[MODEL_DIGEST_BYTES];
	uint8_t more_zeros[32];
};

/* Immutable but for the attaching. */
struct model_profile {
	const struct model_section *section; /* borrowed, as it lies in a profile */
	const uint8_t *serial;		     /* borrowed: the parameters in it */
	struct mspec_params *params;	     /* owned; NULL: no model is attached */
	bool ids, draft;
	uint32_t id_bits;	/* of a token id in a block; 0 without ids */
	uint32_t streams_count; /* of a block */
	double expected_bits;
	uint32_t segments_count; /* 2 * layers */
	uint16_t *
		segments; /* owned: K of layer 0, V of layer 0, K of layer 1, ... in the geometry */
};

/* Ids of the model's vocabulary, all of them. */
bool model_ids_good(const struct model_profile *p, const int32_t *ids, uint32_t count);

/* No section of this geometry is longer. */
size_t model_section_bytes_max(const struct codec_geometry *g);

/* section: 64-byte aligned, borrowed as long as this lives.  -EBADMSG, -ESTALE (another version), -ENOMEM. */
int model_profile_parse(const struct codec_geometry *g, const uint8_t *section, size_t bytes,
			struct model_profile **ret);
struct model_profile *model_profile_free(struct model_profile *p);
/* -ESTALE: another model; -EALREADY; -EBADMSG; -ENOMEM. */
int model_profile_attach(struct model_profile *p, const struct mspec_model *m);

#endif
