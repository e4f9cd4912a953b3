/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_model.c - see bench_model.h.
 */
#include "tools/bench_model.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "gpu/model/safetensors.h"

static double now(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- dumps ---- */

void bench_dump_close(struct bench_dump *d)
{
	free(d->ids);
	free(d->starts);
	free(d->scale_k);
	free(d->scale_v);
	free((void *)d->patterns);
	safetensors_close(d->st);
	*d = (struct bench_dump){ .path = NULL };
}

int bench_dump_bad(const struct bench_dump *d, const char *what, const char *name)
{
	(void)fprintf(stderr, "skvc-bench: %s: %s%s\n", d->path, what, name);
	return -EINVAL;
}

/* A copy of a vector of 4-byte elements, aligned. */
static int dump_vector(const struct bench_dump *d, const char *name, const char *dtype,
		       uint64_t least, uint64_t most, void **ret, uint32_t *ret_count)
{
	const struct safetensors_tensor *t = safetensors_find(d->st, name);

	if (!t || strcmp(t->dtype, dtype) != 0 || t->dims_count != 1 || t->dims[0] < least ||
	    t->dims[0] > most)
		return bench_dump_bad(d, "no vector, or one of another type or length: ", name);
	*ret = malloc(t->bytes);
	if (!*ret)
		return -ENOMEM;
	memcpy(*ret, t->data, t->bytes);
	*ret_count = (uint32_t)t->dims[0];
	return 0;
}

static const struct safetensors_tensor *segment_find(const struct bench_dump *d, uint32_t i,
						     char *name, size_t name_bytes)
{
	(void)snprintf(name, name_bytes, "%c.%u", i % 2u ? 'v' : 'k', i / 2u);
	return safetensors_find(d->st, name);
}

/* As the first keys are, and with all layers that there are keys of. */
static int dump_shape(struct bench_dump *d)
{
	char name[32];
	const struct safetensors_tensor *t = segment_find(d, 0, name, sizeof(name));

	if (!t || t->dims_count != 3 || t->dims[1] < 1 || t->dims[1] > UINT16_MAX ||
	    t->dims[2] < 2 || t->dims[2] > UINT16_MAX)
		return bench_dump_bad(d, "no keys of tokens, heads and elements: ", name);
	d->shape = (struct mspec_shape){ .kv_heads = (uint32_t)t->dims[1],
					 .head_dim = (uint32_t)t->dims[2] };
	while (2u * d->shape.layers < CODEC_SEGMENTS_MAX &&
	       segment_find(d, 2u * d->shape.layers, name, sizeof(name)))
		d->shape.layers++;
	return 0;
}

static int dump_segments(struct bench_dump *d)
{
	const uint32_t segments = 2u * d->shape.layers;

	assert(segments > 0); /* there are keys of layer 0 */
	d->patterns = calloc(segments, sizeof(d->patterns[0]));
	if (!d->patterns)
		return -ENOMEM;
	for (uint32_t i = 0; i < segments; i++) {
		char name[32];
		const struct safetensors_tensor *t = segment_find(d, i, name, sizeof(name));
		uint32_t dtype;

		if (!t || t->dims_count != 3 || t->dims[0] != d->tokens_count ||
		    t->dims[1] != d->shape.kv_heads || t->dims[2] != d->shape.head_dim)
			return bench_dump_bad(d, "missing, or not shaped as the others: ", name);
		dtype = !strcmp(t->dtype, "BF16")      ? CODEC_DTYPE_BF16
			: !strcmp(t->dtype, "F16")     ? CODEC_DTYPE_FP16
			: !strcmp(t->dtype, "F8_E4M3") ? CODEC_DTYPE_E4M3
			: !strcmp(t->dtype, "F8_E5M2") ? CODEC_DTYPE_E5M2
						       : 0;
		if (dtype == 0 || (i > 0 && dtype != d->dtype))
			return bench_dump_bad(d, "a type that is not coded: ", name);
		d->dtype = dtype;
		d->patterns[i] = t->data;
		d->row_bytes = t->bytes / d->tokens_count;
	}
	return 0;
}

static bool same_shape(const struct mspec_shape *a, const struct mspec_shape *b)
{
	return a->layers == b->layers && a->kv_heads == b->kv_heads && a->head_dim == b->head_dim;
}

int bench_dump_open(const char *path, const struct mspec_shape *shape, struct bench_dump *d)
{
	char err[SAFETENSORS_ERR_BYTES] = "";
	uint32_t n = 0;
	int r = safetensors_open(path, &d->st, err, sizeof(err));

	d->path = path;
	if (r < 0) {
		(void)fprintf(stderr, "skvc-bench: %s\n", err);
		return r;
	}
	r = dump_vector(d, "tokens", "I32", 1, 1u << 28, (void **)&d->ids, &d->tokens_count);
	if (r == 0)
		r = dump_vector(d, "seq_start", "I32", 2, 1u << 20, (void **)&d->starts, &n);
	if (r == 0)
		r = dump_shape(d);
	if (r == 0 && shape && !same_shape(shape, &d->shape))
		r = bench_dump_bad(d, "other layers, heads or elements than calibrated on", "");
	if (r == 0)
		r = dump_segments(d);
	if (r < 0)
		return r;
	d->sequences_count = n - 1u;
	for (uint32_t i = 0; i < n; i++)
		if (d->starts[i] < (i ? d->starts[i - 1u] + 1 : 0) ||
		    (uint32_t)d->starts[i] > d->tokens_count)
			return bench_dump_bad(d, "not ascending: ", "seq_start");
	if (!safetensors_find(d->st, "scale.k"))
		return 0;
	n = d->shape.layers;
	r = dump_vector(d, "scale.k", "F32", n, n, (void **)&d->scale_k, &n);
	return r < 0 ? r : dump_vector(d, "scale.v", "F32", n, n, (void **)&d->scale_v, &n);
}

/* ---- fitting ---- */

static int fit_add(struct mspec_fit *f, const struct bench_dump *d, uint32_t tokens_max,
		   uint32_t segments)
{
	const uint8_t **at = calloc(segments, sizeof(at[0]));
	int r = at ? 0 : -ENOMEM;

	for (uint32_t s = 0; r == 0 && s < d->sequences_count; s++) {
		if (tokens_max && (uint32_t)d->starts[s] >= tokens_max)
			break;
		for (uint32_t i = 0; i < segments; i++)
			at[i] = d->patterns[i] + (size_t)d->starts[s] * d->row_bytes;
		r = mspec_fit_add(f, d->ids + d->starts[s], at,
				  (uint32_t)(d->starts[s + 1u] - d->starts[s]));
	}
	free((void *)at);
	return r;
}

int bench_model_fit(const struct mspec_model *m, const struct bench_dump *dumps,
		    uint32_t dumps_count, uint32_t tokens_max, const struct mspec_fit_options *o,
		    struct mspec_params **ret, double *ret_bits)
{
	const uint32_t segments = 2u * dumps[0].shape.layers;
	struct mspec_fit_options own = *o;
	struct mspec_fit *f = NULL;
	int r;

	own.mode = mspec_mode_for(m, dumps[0].shape);
	own.cache = dumps[0].shape;
	if (own.mode == MSPEC_DRAFT && !own.ids)
		return bench_dump_bad(&dumps[0],
				      "of another model: then it is a draft, which needs token ids",
				      "");
	own.dtype = dumps[0].dtype;
	own.scale_k = dumps[0].scale_k;
	own.scale_v = dumps[0].scale_v;
	r = mspec_fit_new(m, &own, &f);
	for (uint32_t i = 0; r == 0 && i < dumps_count; i++)
		r = dumps[i].dtype == own.dtype ? fit_add(f, &dumps[i], tokens_max, segments)
						: bench_dump_bad(&dumps[i], "of another type", "");
	if (r == 0)
		r = mspec_fit_finish(f, ret);
	if (r == 0)
		*ret_bits = mspec_fit_bits(f);
	mspec_fit_free(f);
	return r;
}

/* ---- blocks ---- */

/* How blocks lie in a dump: block_index counts tokens, so that a block may begin at any. */
struct layout {
	uint8_t *base;
	struct codec_stride stride[CODEC_SEGMENTS_MAX];
	uint64_t block_stride[CODEC_SEGMENTS_MAX];
};

static void layout_of(const struct bench_dump *d, uint32_t segments, uint32_t heads,
		      struct layout *ret)
{
	const uint8_t *lowest = d->patterns[0];

	for (uint32_t i = 1; i < segments; i++)
		lowest = d->patterns[i] < lowest ? d->patterns[i] : lowest;
	ret->base = (uint8_t *)(uintptr_t)lowest; /* the codec only reads it */
	for (uint32_t i = 0; i < segments; i++) {
		ret->stride[i] = (struct codec_stride){ .off = (uint64_t)(d->patterns[i] - lowest),
							.token_stride = d->row_bytes,
							.head_stride = d->row_bytes / heads };
		ret->block_stride[i] = d->row_bytes;
	}
}

static struct codec_view view_of(const struct bench_dump *d, const struct layout *l, uint32_t first,
				 uint32_t position, struct codec_sequence *s)
{
	return (struct codec_view){ .base = l->base,
				    .stride = l->stride,
				    .block_index = first,
				    .block_stride = l->block_stride,
				    .position = position,
				    .sequence = s,
				    .tokens = d->ids + first };
}

static int geometry_of(const struct bench_dump *d, uint32_t block, struct codec_geometry *ret)
{
	const struct mspec_shape *c = &d->shape;
	struct codec_segment segments[CODEC_SEGMENTS_MAX];

	if (2u * c->layers > CODEC_SEGMENTS_MAX)
		return bench_dump_bad(d, "too many layers", "");
	for (uint32_t i = 0; i < 2u * c->layers; i++)
		segments[i] = (struct codec_segment){
			.kind = i % 2u ? CODEC_KIND_V : CODEC_KIND_K,
			.dtype = (uint8_t)d->dtype,
			.layer = (uint16_t)(i / 2u),
			.heads = (uint16_t)c->kv_heads,
			.head_dim = (uint16_t)c->head_dim,
		};
	return codec_geometry_init(ret, block, segments, 2u * c->layers);
}

/* Blocks of a dump that lie in one sequence, one after the other. */
struct walk {
	const struct bench_dump *d;
	uint32_t block, sequence, first, position;
};

static bool walk_next(struct walk *w, bool start)
{
	const struct bench_dump *d = w->d;

	if (!start) {
		w->first += w->block;
		w->position += w->block;
	}
	for (; w->sequence < d->sequences_count; w->sequence++, start = true) {
		if (start) {
			w->first = (uint32_t)d->starts[w->sequence];
			w->position = 0;
		}
		if (w->first + w->block <= (uint32_t)d->starts[w->sequence + 1u])
			return true;
	}
	return false;
}

/* The channel part of a profile, which every profile has. */
static int channel_fit(const struct codec_geometry *g, const struct bench_dump *on,
		       struct codec_profile **ret)
{
	struct layout *l = malloc(sizeof(*l));
	struct walk w = { .d = on, .block = g->block_tokens };
	struct codec_fit *fit = NULL;
	int r = l ? codec_fit_new(g, &fit) : -ENOMEM;

	if (r == 0) {
		layout_of(on, g->segments_count, g->segments[0].heads, l);
		for (bool more = walk_next(&w, true); more; more = walk_next(&w, false)) {
			const struct codec_view v = view_of(on, l, w.first, w.position, NULL);

			codec_fit_add(fit, &v);
		}
		r = codec_fit_finish(fit, ret);
	}
	codec_fit_free(fit);
	free(l);
	return r;
}

/* ---- coding ---- */

struct coding {
	const struct bench_dump *d;
	struct layout layout;
	struct codec_geometry g;
	struct codec_profile *channel, *profile; /* owned, like all below */
	struct codec_sequence *sequence, *other; /* the encoder's, the decoder's */
	struct codec_workspace *ws;
	uint8_t *raw, *back, *coded;
	size_t cap;
	struct bench_predictor_blocks *kept; /* borrowed; NULL: not asked for */
	struct bench_model_totals t;
};

static int coding_init(struct coding *k, const struct bench_model_coding *o)
{
	char err[CODEC_ERR_BYTES] = "";
	int r = geometry_of(k->d, o->block, &k->g);

	if (r < 0)
		return r;
	layout_of(k->d, k->g.segments_count, k->d->shape.kv_heads, &k->layout);
	k->cap = codec_bound(&k->g);
	k->raw = malloc(k->g.raw_bytes);
	k->back = malloc(k->g.raw_bytes);
	k->coded = malloc(k->cap);
	r = k->raw && k->back && k->coded ? codec_workspace_new(&k->ws) : -ENOMEM;
	if (r == 0)
		r = channel_fit(&k->g, o->channel_on ? o->channel_on : k->d, &k->channel);
	if (r == 0)
		r = codec_profile_with_model(&k->g, k->channel, o->params, o->expected_bits,
					     &k->profile, err, sizeof(err));
	if (r < 0 && err[0])
		return bench_dump_bad(k->d, err, "");
	if (r == 0)
		r = codec_sequence_new(&k->g, k->profile, o->runner, &k->sequence);
	if (r == 0)
		r = codec_sequence_new(&k->g, k->profile, o->runner, &k->other);
	return r;
}

static void coding_deinit(struct coding *k)
{
	codec_sequence_free(k->sequence);
	codec_sequence_free(k->other);
	codec_profile_free(k->profile);
	codec_profile_free(k->channel);
	codec_workspace_free(k->ws);
	codec_geometry_deinit(&k->g);
	free(k->raw);
	free(k->back);
	free(k->coded);
}

static int code_block(struct coding *k, const struct walk *w)
{
	const struct codec_view src = view_of(k->d, &k->layout, w->first, w->position, k->sequence);
	const struct codec_view dst = { .base = k->back,
					.position = w->position,
					.sequence = k->other };
	struct codec_info info;
	double begin = now();
	int r = codec_encode(k->ws, &k->g, k->profile, CODEC_SPEC_MODEL, 0, &src, k->coded, k->cap,
			     &info);

	k->t.encode_s += now() - begin;
	if (r < 0)
		return r;
	begin = now();
	r = codec_decode(k->ws, &k->g, k->profile, k->coded, info.encoded_bytes, &info.raw_xxh3,
			 &dst);
	k->t.decode_s += now() - begin;
	if (r < 0)
		return r;
	codec_copy_out(&k->g, &src, k->raw);
	if (memcmp(k->raw, k->back, k->g.raw_bytes) != 0)
		return bench_dump_bad(k->d, "decoded differs", "");
	k->t.blocks++;
	k->t.fallbacks += info.speculator != CODEC_SPEC_MODEL;
	k->t.raw_bytes += k->g.raw_bytes;
	k->t.coded_bytes += info.encoded_bytes;
	k->t.escapes += info.escapes;
	k->t.ideal_bits += info.ideal_bits;
	return k->kept ? bench_predictor_keep(k->kept, &k->g, k->raw, k->coded, &info, w->position,
					      k->d->ids + w->first)
		       : 0;
}

int bench_model_code(const struct bench_dump *d, const struct bench_model_coding *o,
		     struct bench_model_totals *ret)
{
	struct coding *k = calloc(1, sizeof(*k));
	struct bench_predictor_blocks kept = { NULL, 0, 0 };
	struct walk w = { .d = d, .block = o->block };
	int r;

	if (!k)
		return -ENOMEM;
	k->d = d;
	k->kept = o->gpu ? &kept : NULL;
	r = coding_init(k, o);
	for (bool more = walk_next(&w, true); r == 0 && more; more = walk_next(&w, false)) {
		if (w.position == 0) {
			(void)codec_sequence_truncate(k->sequence, 0);
			(void)codec_sequence_truncate(k->other, 0);
		}
		r = code_block(k, &w);
	}
	k->t.scalars = k->t.raw_bytes / codec_dtype_bytes((uint8_t)d->dtype);
	if (r == 0 && o->gpu && kept.count > 0)
		r = bench_predictor_run(o->gpu, &k->g, k->profile, &kept, &k->t.gpu);
	*ret = k->t;
	bench_predictor_forget(&kept);
	coding_deinit(k);
	free(k);
	return r;
}
