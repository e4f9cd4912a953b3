/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_sequence.c - blocks that `model` codes, and the profile they need, with bytes changed and the payload's check
 * put right: refused, or decoded to what the block's own checksum says.  Whatever comes of it, the sequence stands
 * where it stood, and the block as it was decodes.
 *
 * Input: a byte (low bits: which block; high bit: the profile is what is edited), then triples of an offset, u16
 * little endian, and the byte that goes there.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "gpu/codec/format.h"
#include "tests/lib/sequence_rig.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct sequence_rig *rig;
static struct codec_sequence *sequence; /* holds the blocks before the one at hand */
static uint32_t stands;

static void stand_before(uint32_t b)
{
	int r = codec_sequence_truncate(sequence, (b < stands ? b : stands) * SEQUENCE_RIG_TOKENS);

	assert(r == 0);
	stands = b < stands ? b : stands;
	for (; stands < b; stands++) {
		r = sequence_rig_decode(rig, rig->model, sequence, stands);
		assert(r == 0);
	}
}

static void prepare(void)
{
	struct codec_sequence *s;

	rig = sequence_rig_new(0, CODEC_DTYPE_BF16, true, false);
	s = sequence_rig_sequence(rig, rig->model);
	for (uint32_t b = 0; b < SEQUENCE_RIG_BLOCKS; b++) {
		int r = sequence_rig_encode(rig, rig->model, CODEC_SPEC_MODEL, 0, s, b);

		assert(r == 0);
	}
	codec_sequence_free(s);
	sequence = sequence_rig_sequence(rig, rig->model);
}

static void edit(uint8_t *bytes, size_t count, const uint8_t *data, size_t size)
{
	for (; size >= 3; data += 3, size -= 3)
		bytes[(data[0] | (size_t)data[1] << 8) % count] = data[2];
}

/* The first chunk is the model's: its payload begins with a check of all behind it. */
static void check_put_right(uint8_t *coded, size_t count)
{
	const size_t off = sizeof(struct format_block_header) +
			   rig->g.chunks_count * sizeof(struct format_chunk_entry);
	struct format_chunk_entry e;
	uint32_t check;

	memcpy(&e, coded + sizeof(struct format_block_header), sizeof(e));
	if (e.payload_bytes < sizeof(check) || off > count || e.payload_bytes > count - off)
		return;
	check = (uint32_t)XXH3_64bits(coded + off + sizeof(check), e.payload_bytes - sizeof(check));
	memcpy(coded + off, &check, sizeof(check));
}

static void try_block(uint32_t b, const uint8_t *data, size_t size)
{
	const size_t count = rig->info[b].encoded_bytes;
	uint8_t *own = rig->coded[b], *coded = malloc(count);
	int r;

	if (!coded)
		return;
	memcpy(coded, own, count);
	edit(coded, count, data, size);
	check_put_right(coded, count);
	stand_before(b);
	rig->coded[b] = coded;
	r = sequence_rig_decode(rig, rig->model, sequence, b);
	rig->coded[b] = own;
	free(coded);
	if (r == 0) {
		assert(memcmp(rig->back, rig->block[b], rig->g.raw_bytes) == 0);
		stands++;
	} else {
		assert(r == -EBADMSG || r == -ESTALE);
	}
	assert(codec_sequence_position(sequence) == stands * SEQUENCE_RIG_TOKENS);
	stand_before(b);
	r = sequence_rig_decode(rig, rig->model, sequence, b);
	assert(r == 0 && memcmp(rig->back, rig->block[b], rig->g.raw_bytes) == 0);
	stands++;
}

/* One that is taken codes the block to something that it decodes again. */
static void try_profile(const uint8_t *data, size_t size)
{
	struct codec_profile *p = NULL;
	struct codec_sequence *s;
	size_t count;
	const void *own = codec_profile_bytes(rig->model, &count);
	uint8_t *bytes = malloc(count);
	int r;

	if (!bytes)
		return;
	memcpy(bytes, own, count);
	/* The last 64 KiB at most: the model's section is the last. */
	edit(bytes + (count > 65536 ? count - 65536 : 0), count > 65536 ? 65536 : count, data,
	     size);
	r = codec_profile_parse(&rig->g, bytes, count, &p);
	free(bytes);
	assert(r == 0 || r == -EBADMSG || r == -ESTALE);
	if (r == 0)
		r = codec_profile_attach_model(p, rig->m);
	assert(r == 0 || r == -EBADMSG || r == -ESTALE || r == -ENODATA);
	if (r == 0) {
		uint8_t *coded = rig->coded[0];
		struct codec_info info = rig->info[0];

		rig->coded[0] = malloc(rig->cap);
		assert(rig->coded[0]);
		s = sequence_rig_sequence(rig, p);
		r = sequence_rig_encode(rig, p, CODEC_SPEC_MODEL, 0, s, 0);
		assert(r == 0);
		r = codec_sequence_truncate(s, 0);
		assert(r == 0);
		r = sequence_rig_decode(rig, p, s, 0);
		assert(r == 0 && memcmp(rig->back, rig->block[0], rig->g.raw_bytes) == 0);
		codec_sequence_free(s);
		free(rig->coded[0]);
		rig->coded[0] = coded;
		rig->info[0] = info;
	}
	codec_profile_free(p);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (!rig)
		prepare();
	if (size < 1)
		return 0;
	if (data[0] & 0x80u)
		try_profile(data + 1, size - 1);
	else
		try_block(data[0] % SEQUENCE_RIG_BLOCKS, data + 1, size - 1);
	return 0;
}
