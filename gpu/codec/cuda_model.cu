/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_model.cu - the stages of a layer over the rows of a batch: which kernels, in which order.
 */
#include <stdlib.h>
#include <string.h>

#include "gpu/codec/cuda_model_objects.cuh"

#include "gpu/codec/cuda_model_attend_wide.cuh"
#include "gpu/codec/cuda_model_draft.cuh"
#include "gpu/codec/cuda_model_gemm.cuh"
#include "gpu/codec/cuda_model_heads_wide.cuh"
#include "gpu/codec/cuda_model_rows.cuh"

static_assert(ATTEND_KEYS_MAX == CUDA_MODEL_POSITIONS_MAX, "sums of a row's planes");

static const struct model_config *config_of(const struct cuda_model_batch *b)
{
	return &b->m->p->model->config;
}

static uint32_t wide_of(const struct cuda_model_batch *b, enum mspec_product p)
{
	return b->m->p->precision.wide[p];
}

/* ---- rows ---- */

template <enum row_source SOURCE, bool MIXED>
static int rows_launch(const struct gpu_row_job *j, uint32_t rows, struct CUstream_st *stream)
{
	const uint32_t parts = j->depth_pieces * MPIECE / ROW_GROUP; /* groups of a row */
	/* Some to a thread: what is reckoned once a row, each warp reckons. */
	const uint32_t groups = parts <= 128u			? 1u
				: parts <= ROW_THREADS_MAX	? 2u
				: parts <= 4u * ROW_THREADS_MAX ? 4u
								: ROW_GROUPS_MAX;
	const uint32_t threads = ((parts + groups - 1u) / groups + LANES - 1u) / LANES * LANES;

	if (groups == 1u)
		row_kernel<SOURCE, 1, MIXED><<<rows, threads, 0, stream>>>(*j);
	else if (groups == 2u)
		row_kernel<SOURCE, 2, MIXED><<<rows, threads, 0, stream>>>(*j);
	else if (groups == 4u)
		row_kernel<SOURCE, 4, MIXED><<<rows, threads, 0, stream>>>(*j);
	else
		row_kernel<SOURCE, ROW_GROUPS_MAX, MIXED><<<rows, threads, 0, stream>>>(*j);
	return cudaGetLastError();
}

static struct gpu_row_job row_job(const struct cuda_model_batch *b, const struct gpu_matrix *m,
				  uint32_t wide)
{
	struct gpu_row_job j = {};

	j.count = m->depth;
	j.depth_pieces = m->depth_pieces;
	j.rows_pieces = mpieces(b->rows_max);
	j.mixed = m->mixed;
	j.q_max = wide & MODEL_WIDE_ROW ? MODEL_Q16 : MODEL_Q8;
	j.high = b->high;
	j.low = b->low;
	j.scale = b->row_scale;
	return j;
}

/* hidden: [rows][hidden] */
static int rows_norm(const struct cuda_model_batch *b, const int32_t *hidden,
		     const struct gpu_matrix *m, uint32_t wide, const struct gpu_norm *norm,
		     uint64_t eps, struct CUstream_st *stream)
{
	struct gpu_row_job j = row_job(b, m, wide);

	j.in = hidden;
	j.in_pitch = m->depth;
	j.frac = norm->frac;
	j.norm = *norm;
	j.eps = eps;
	return j.mixed ? rows_launch<ROW_NORM, true>(&j, b->rows, stream)
		       : rows_launch<ROW_NORM, false>(&j, b->rows, stream);
}

static int rows_error(const struct cuda_model_batch *b, const struct gpu_matrix *m, bool value,
		      struct CUstream_st *stream)
{
	const uint32_t kv = mspec_kv_width(config_of(b));
	struct gpu_row_job j = row_job(b, m, wide_of(b, MSPEC_MAPS));

	j.in = b->error + (value ? kv : 0);
	j.in_pitch = 2u * kv;
	j.frac = RESIDUAL_FRAC;
	return rows_launch<ROW_VALUES, false>(&j, b->rows, stream);
}

static int rows_attended(const struct cuda_model_batch *b, const struct gpu_matrix *m,
			 struct model_scale real, struct CUstream_st *stream)
{
	struct gpu_row_job j = row_job(b, m, wide_of(b, MSPEC_O));

	j.in = b->out;
	j.in_pitch = m->depth;
	j.frac = MODEL_FRAC;
	j.real = real;
	return j.mixed ? rows_launch<ROW_SCALED, true>(&j, b->rows, stream)
		       : rows_launch<ROW_SCALED, false>(&j, b->rows, stream);
}

static int rows_gated(const struct cuda_model_batch *b, const struct gpu_matrix *m,
		      struct CUstream_st *stream)
{
	struct gpu_row_job j = row_job(b, m, wide_of(b, MSPEC_DOWN));

	j.in = b->out;
	j.in_pitch = 2u * m->depth;
	j.frac = 2 * MODEL_MLP_FRAC;
	j.sigmoid = b->m->sigmoid;
	return j.mixed ? rows_launch<ROW_GATED, true>(&j, b->rows, stream)
		       : rows_launch<ROW_GATED, false>(&j, b->rows, stream);
}

/* ---- products ---- */

template <uint32_t WIDE>
static int product_launch(const struct gpu_product *p, struct CUstream_st *stream)
{
	const dim3 grid(mpieces(p->rows), mpieces(p->m.outs));

	product_kernel<WIDE><<<grid, PRODUCT_THREADS, product_shared(WIDE), stream>>>(*p);
	return cudaGetLastError();
}

/* The rows that are in pieces now, times a matrix. */
static int product(const struct cuda_model_batch *b, const struct gpu_matrix *m, uint32_t wide,
		   int32_t frac, bool add, int32_t *out, uint32_t out_pitch,
		   struct CUstream_st *stream)
{
	struct gpu_product p = {};

	p.high = b->high;
	p.low = b->low;
	p.row_scale = b->row_scale;
	p.m = *m;
	p.rows = b->rows;
	p.rows_pieces = mpieces(b->rows_max);
	p.frac = frac;
	p.add = add;
	p.out = out;
	p.out_pitch = out_pitch;
	switch (wide) {
	case 0:
		return product_launch<0>(&p, stream);
	case MODEL_WIDE_ROW:
		return product_launch<MODEL_WIDE_ROW>(&p, stream);
	case MODEL_WIDE_WEIGHT:
		return product_launch<MODEL_WIDE_WEIGHT>(&p, stream);
	default:
		return product_launch<MODEL_WIDE_ROW | MODEL_WIDE_WEIGHT>(&p, stream);
	}
}

/* ---- heads ---- */

static struct gpu_heads_job heads_job(const struct cuda_model_batch *b,
				      const struct gpu_model_layer *l, const struct gpu_norm *norm)
{
	const struct model_config *c = config_of(b);
	struct gpu_heads_job j = {};

	j.in = b->out;
	j.rows = b->rows;
	j.heads = c->heads;
	j.kv_heads = c->kv_heads;
	j.dim = c->head_dim;
	j.rope = b->m->rope;
	j.position = b->positions;
	j.norm = *norm;
	j.eps = b->m->p->model->eps_head;
	j.bias_k = l->bias_k;
	j.bias_v = l->bias_v;
	j.unit_k = l->unit_k;
	j.unit_v = l->unit_v;
	j.mu_k = b->mu_k;
	j.mu_v = b->mu_v;
	j.high = b->query_high;
	j.low = b->query_low;
	j.step = b->step;
	j.score = l->score;
	return j;
}

typedef void (*heads_kernel)(struct gpu_heads_job);

/* By log2 of the dims over 32. */
static const heads_kernel guess_wide[] = { guess_wide_kernel<1>, guess_wide_kernel<2>,
					   guess_wide_kernel<4> };
static const heads_kernel query_wide[] = { query_wide_kernel<1>, query_wide_kernel<2>,
					   query_wide_kernel<4> };

/* items: heads of all rows.  any: takes heads of every length. */
static int heads_launch(const struct gpu_heads_job *j, uint32_t items, heads_kernel any,
			const heads_kernel *wide, struct CUstream_st *stream)
{
	const uint32_t warps = (items + HEADS_EACH - 1u) / HEADS_EACH;
	heads_kernel kernel = any;

	for (uint32_t i = 0; i < 3u; i++)
		if (j->dim == LANES << i)
			kernel = wide[i];
	kernel<<<((kernel == any ? items : warps) + HEAD_WARPS - 1u) / HEAD_WARPS,
		 HEAD_WARPS * LANES, 0, stream>>>(*j);
	return cudaGetLastError();
}

template <uint32_t DIM>
static int attend_launch(const struct gpu_attend_job *j, uint32_t tiles, struct CUstream_st *stream)
{
	const dim3 grid(tiles, j->heads, (DIM + ATTEND_DIMS_MAX - 1u) / ATTEND_DIMS_MAX);

	attend_kernel<DIM>
		<<<grid, attend_shape<DIM>::THREADS,
		   attend_shared_bytes(DIM, sizeof(struct attend_shared<DIM>)), stream>>>(*j);
	return cudaGetLastError();
}

static int attend(const struct cuda_model_batch *b, uint32_t layer, struct CUstream_st *stream)
{
	const struct model_config *c = config_of(b);
	struct gpu_attend_job j = {};

	j.high = b->query_high;
	j.low = b->query_low;
	j.step = b->step;
	j.tiles = b->tile_of;
	j.sequences = b->sequences;
	j.exp = b->m->exp;
	j.heads = c->heads;
	j.kv_heads = c->kv_heads;
	j.dim = c->head_dim;
	j.layer = layer;
	j.out = b->out;
	switch (model_dim_padded(c->head_dim)) {
	case 32:
		return attend_launch<32>(&j, b->tiles, stream);
	case 64:
		return attend_launch<64>(&j, b->tiles, stream);
	case 128:
		return attend_launch<128>(&j, b->tiles, stream);
	default:
		return attend_launch<256>(&j, b->tiles, stream);
	}
}

/* ---- a layer ---- */

static int guess_k(struct cuda_model_batch *b, const struct gpu_model_layer *l,
		   struct CUstream_st *stream)
{
	const struct model_config *c = config_of(b);
	const struct gpu_heads_job j = heads_job(b, l, &l->k_norm);
	const uint32_t wide = wide_of(b, MSPEC_KV), items = b->rows * 2u * c->kv_heads;
	int r = rows_norm(b, b->hidden, &l->kv, wide, &l->input, l->eps_input, stream);

	if (r == 0)
		r = product(b, &l->kv, wide, MODEL_FRAC, false, b->out, l->kv.outs, stream);
	if (r)
		return r;
	return heads_launch(&j, items, guess_kernel, guess_wide, stream);
}

static int known(struct cuda_model_batch *b, uint32_t segment, const uint8_t *patterns,
		 struct CUstream_st *stream)
{
	const struct model_config *c = config_of(b);
	const struct gpu_model_layer *l = &b->m->layers[segment / 2u];
	const bool value = segment % 2u;
	const dim3 grid(b->tiles, c->kv_heads);
	struct gpu_known_job j = {};

	j.patterns = patterns;
	j.mu = value ? b->mu_v : b->mu_k;
	j.type = residual_type_of(b->m->p->dtype);
	j.kv_heads = c->kv_heads;
	j.dim = c->head_dim;
	j.layer = segment / 2u;
	j.segment = segment;
	j.sigma = value ? l->sigma_v : l->sigma_k;
	j.rope = b->m->rope;
	j.tiles = b->tile_of;
	j.sequences = b->sequences;
	j.frac = value ? l->v_frac : l->k_frac;
	j.error = b->error;
	if (value)
		known_v_kernel<<<grid, 256, 0, stream>>>(j);
	else
		known_k_kernel<<<grid, 256, 0, stream>>>(j);
	return cudaGetLastError();
}

/* What K's errors tell of V, and of the hidden state; the gain of V comes after it. */
static int known_k(struct cuda_model_batch *b, const struct gpu_model_layer *l, bool last,
		   struct CUstream_st *stream)
{
	const uint32_t wide = wide_of(b, MSPEC_MAPS), hidden = config_of(b)->hidden;
	int r = rows_error(b, &l->value_map, false, stream);

	if (r == 0)
		r = product(b, &l->value_map, wide, RESIDUAL_FRAC, true, b->mu_v, l->value_map.outs,
			    stream);
	if (r == 0 && !last)
		r = product(b, &l->gain_k, wide, MSPEC_HIDDEN_FRAC, true, b->hidden, hidden,
			    stream);
	return r;
}

static int attention(struct cuda_model_batch *b, uint32_t layer, struct CUstream_st *stream)
{
	const struct gpu_model_layer *l = &b->m->layers[layer];
	const struct model_config *c = config_of(b);
	const struct gpu_heads_job j = heads_job(b, l, &l->q_norm);
	const uint32_t items = b->rows * c->heads;
	int r = rows_norm(b, b->hidden, &l->q, wide_of(b, MSPEC_Q), &l->input, l->eps_input,
			  stream);

	if (r == 0)
		r = product(b, &l->q, wide_of(b, MSPEC_Q), MODEL_FRAC, false, b->out, l->q.outs,
			    stream);
	if (r)
		return r;
	r = heads_launch(&j, items, query_kernel, query_wide, stream);
	if (r == 0)
		r = attend(b, layer, stream);
	if (r == 0)
		r = rows_attended(b, &l->o, l->real_v, stream);
	if (r == 0)
		r = product(b, &l->o, wide_of(b, MSPEC_O), MSPEC_HIDDEN_FRAC, true, b->hidden,
			    c->hidden, stream);
	return r;
}

static int mlp(struct cuda_model_batch *b, const struct gpu_model_layer *l,
	       struct CUstream_st *stream)
{
	int r = rows_norm(b, b->hidden, &l->gate_up, wide_of(b, MSPEC_GATE), &l->post, l->eps_post,
			  stream);

	if (r == 0)
		r = product(b, &l->gate_up, wide_of(b, MSPEC_GATE), MODEL_MLP_FRAC, false, b->out,
			    l->gate_up.outs, stream);
	if (r == 0)
		r = rows_gated(b, &l->down, stream);
	if (r == 0)
		r = product(b, &l->down, wide_of(b, MSPEC_DOWN), MSPEC_HIDDEN_FRAC, true, b->hidden,
			    config_of(b)->hidden, stream);
	return r;
}

static int finish(struct cuda_model_batch *b, uint32_t layer, struct CUstream_st *stream)
{
	const struct gpu_model_layer *l = &b->m->layers[layer];
	int r = rows_error(b, &l->gain_v, true, stream);

	if (r == 0)
		r = product(b, &l->gain_v, wide_of(b, MSPEC_MAPS), MSPEC_HIDDEN_FRAC, true,
			    b->hidden, config_of(b)->hidden, stream);
	if (r == 0)
		r = attention(b, layer, stream);
	if (r == 0)
		r = mlp(b, l, stream);
	return r;
}

/* ---- a draft ---- */

/* A layer of its own pass, over keys and values of its own. */
static int own_layer(struct cuda_model_batch *b, uint32_t layer, struct CUstream_st *stream)
{
	const struct gpu_model_layer *l = &b->m->layers[layer];
	const struct model_config *c = config_of(b);
	const dim3 grid(b->tiles, c->kv_heads);
	struct gpu_own_job j = {};
	int r = guess_k(b, l, stream);

	if (r)
		return r;
	j.mu_k = b->mu_k;
	j.mu_v = b->mu_v;
	j.kv_heads = c->kv_heads;
	j.dim = c->head_dim;
	j.layer = layer;
	j.k_frac = l->k_frac;
	j.v_frac = l->v_frac;
	j.tiles = b->tile_of;
	j.sequences = b->sequences;
	own_kernel<<<grid, 256, 0, stream>>>(j);
	r = cudaGetLastError();
	if (r == 0)
		r = attention(b, layer, stream);
	return r ? r : mlp(b, l, stream);
}

/* The rows were just embedded; hidden is what its last layer leaves. */
static int draft_pass(struct cuda_model_batch *b, struct CUstream_st *stream)
{
	int r = cudaMemcpyAsync(b->embedding, b->hidden,
				(size_t)b->rows * config_of(b)->hidden * sizeof(int32_t),
				cudaMemcpyDeviceToDevice, stream);

	for (uint32_t l = 0; r == 0 && l < config_of(b)->layers; l++)
		r = own_layer(b, l, stream);
	return r;
}

static uint32_t cache_kv(const struct cuda_model_batch *b)
{
	return mspec_shape_kv(b->m->p->draft->shape);
}

/* Exact values of one part of a layer: [rows][2 * kv] of both. */
static int32_t *exact_of(const struct cuda_model_batch *b, uint32_t layer, bool value)
{
	const uint32_t slot = layer % (b->m->p->draft->previous + 1u), kv = cache_kv(b);

	return b->exact + (size_t)slot * b->rows_max * 2u * kv + (value ? kv : 0);
}

/* out += them, weighed, times a map. */
static int exact_product(const struct cuda_model_batch *b, uint32_t layer, bool value,
			 const struct gpu_matrix *m, int32_t *out, struct CUstream_st *stream)
{
	const uint32_t kv = cache_kv(b), wide = wide_of(b, MSPEC_MAPS);
	struct gpu_row_job j = row_job(b, m, wide);
	int r;

	j.in = exact_of(b, layer, value);
	j.in_pitch = 2u * kv;
	j.frac = RESIDUAL_FRAC + MSPEC_WEIGH_FRAC;
	j.norm.weights = b->m->draft_layers[layer].weigh + (value ? kv : 0);
	r = rows_launch<ROW_WEIGHED, false>(&j, b->rows, stream);
	return r ? r : product(b, m, wide, RESIDUAL_FRAC, true, out, m->outs, stream);
}

static int sums_out(const struct cuda_model_batch *b, bool value, struct CUstream_st *stream)
{
	struct gpu_sums_job j = {};

	j.sums = b->sums;
	j.kv = cache_kv(b);
	j.dim = b->m->p->draft->shape.head_dim;
	j.rope = value ? NULL : b->m->cache_rope;
	j.position = b->positions;
	j.mu = value ? b->mu_v : b->mu_k;
	sums_out_kernel<<<b->rows, 256, 0, stream>>>(j);
	return cudaGetLastError();
}

static int draft_guess_k(struct cuda_model_batch *b, uint32_t layer, struct CUstream_st *stream)
{
	const struct gpu_draft_layer *l = &b->m->draft_layers[layer];
	const uint32_t wide = wide_of(b, MSPEC_MAPS), count = 2u * cache_kv(b);
	int r;

	sums_kernel<<<b->rows, 256, 0, stream>>>(l->bias, count, b->sums);
	r = cudaGetLastError();
	for (uint32_t i = 0; r == 0 && i < MSPEC_TAPS; i++) {
		r = rows_norm(b, i ? b->hidden : b->embedding, &l->tap[i], wide, &b->m->tap_norm[i],
			      b->m->layers[0].eps_input, stream);
		if (r == 0)
			r = product(b, &l->tap[i], wide, RESIDUAL_FRAC, true, b->sums, count,
				    stream);
	}
	for (uint32_t i = 0; r == 0 && i < mspec_draft_past(b->m->p->draft, layer); i++)
		r = exact_product(b, layer - 1u - i / 2u, i % 2u, &l->past[i], b->sums, stream);
	return r ? r : sums_out(b, false, stream);
}

static int draft_guess_v(struct cuda_model_batch *b, uint32_t layer, struct CUstream_st *stream)
{
	const int r = sums_out(b, true, stream);

	return r ? r
		 : exact_product(b, layer, false, &b->m->draft_layers[layer].own, b->mu_v, stream);
}

static int draft_known(struct cuda_model_batch *b, uint32_t segment, const uint8_t *patterns,
		       struct CUstream_st *stream)
{
	const struct mspec_shape *c = &b->m->p->draft->shape;
	const bool value = segment % 2u;
	const dim3 grid(b->tiles, c->kv_heads);
	struct gpu_exact_job j = {};

	j.patterns = patterns;
	j.mu = value ? b->mu_v : b->mu_k;
	j.type = residual_type_of(b->m->p->dtype);
	j.kv_heads = c->kv_heads;
	j.dim = c->head_dim;
	j.segment = segment;
	j.rope = value ? NULL : b->m->cache_rope;
	j.tiles = b->tile_of;
	j.sequences = b->sequences;
	j.to = exact_of(b, segment / 2u, false);
	exact_kernel<<<grid, 256, 0, stream>>>(j);
	return cudaGetLastError();
}

/* ---- segments ---- */

int cuda_model_guess(struct cuda_model_batch *b, uint32_t segment, struct CUstream_st *stream,
		     const int32_t **dev_mu)
{
	*dev_mu = segment % 2u ? b->mu_v : b->mu_k;
	if (b->m->draft_layers)
		return segment % 2u ? draft_guess_v(b, segment / 2u, stream)
				    : draft_guess_k(b, segment / 2u, stream);
	return segment % 2u ? 0 : guess_k(b, &b->m->layers[segment / 2u], stream);
}

int cuda_model_known(struct cuda_model_batch *b, uint32_t segment, const uint8_t *dev_patterns,
		     struct CUstream_st *stream)
{
	const uint32_t layer = segment / 2u;
	const bool last = layer + 1u == config_of(b)->layers;
	int r;

	if (b->m->draft_layers)
		return draft_known(b, segment, dev_patterns, stream);
	r = known(b, segment, dev_patterns, stream);
	if (r)
		return r;
	if (segment % 2u == 0)
		return known_k(b, &b->m->layers[layer], last, stream);
	return last ? 0 : finish(b, layer, stream);
}

/* ---- a batch ---- */

/* Kernels' shared memory, for the current device. */
static int limits_set(void)
{
	const cudaFuncAttribute a = cudaFuncAttributeMaxDynamicSharedMemorySize;
	int r = cudaFuncSetAttribute(product_kernel<0>, a, product_shared(0));

	if (r == 0)
		r = cudaFuncSetAttribute(product_kernel<1>, a, product_shared(1));
	if (r == 0)
		r = cudaFuncSetAttribute(product_kernel<2>, a, product_shared(2));
	if (r == 0)
		r = cudaFuncSetAttribute(product_kernel<3>, a, product_shared(3));
	if (r == 0)
		r = cudaFuncSetAttribute(
			attend_kernel<128>, a,
			attend_shared_bytes(128, sizeof(struct attend_shared<128>)));
	if (r == 0)
		r = cudaFuncSetAttribute(attend_kernel<256>, a, sizeof(struct attend_shared<256>));
	return r;
}

/* Rows, tiles and sequences of the parts on the host. */
static int parts_lay(struct cuda_model_batch *b, const struct cuda_model_part *parts,
		     uint32_t count, bool ids)
{
	const struct mspec_params *p = b->m->p;

	if (count == 0 || count > b->parts_max)
		return cudaErrorInvalidValue;
	b->rows = b->tiles = 0;
	b->parts = count;
	for (uint32_t i = 0; i < count; i++) {
		const struct cuda_model_part *part = &parts[i];
		const struct cuda_model_context *c = part->context;

		if (part->count == 0 || part->count > b->rows_max - b->rows ||
		    part->count > c->capacity - c->count ||
		    c->count + part->count > b->positions_max || (ids && !part->ids))
			return cudaErrorInvalidValue;
		for (uint32_t r = 0; ids && r < part->count; r++)
			if (part->ids[r] < 0 || (uint32_t)part->ids[r] >= p->model->config.vocab)
				return cudaErrorInvalidValue;
		b->host_parts[i] = *part;
		b->host_sequences[i] = (struct gpu_model_sequence){ c->values, c->capacity, 0 };
		for (uint32_t r = 0; r < part->count; r++)
			b->host_positions[b->rows + r] = c->count + r;
		for (uint32_t r = 0; r < part->count; r += MTILE)
			b->host_tiles[b->tiles++] = (struct gpu_model_tile){
				i, c->count + r, b->rows + r,
				part->count - r < MTILE ? part->count - r : MTILE
			};
		b->rows += part->count;
	}
	return 0;
}

static int to_device(void *to, const void *from, size_t bytes, struct CUstream_st *stream)
{
	return cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream);
}

int cuda_model_embed(struct cuda_model_batch *b, struct CUstream_st *stream)
{
	const struct mspec_params *p = b->m->p;
	struct gpu_embed_job j = {};

	j.high = b->m->embedding_high;
	j.low = b->m->embedding_low;
	j.mants = b->m->embedding_mants;
	j.exps = b->m->embedding_exps;
	j.start = b->m->start;
	j.ids = p->ids ? b->ids : NULL;
	j.hidden = b->hidden;
	j.pitch = p->model->embedding.pitch;
	j.count = p->model->config.hidden;
	j.frac = MSPEC_HIDDEN_FRAC;
	embed_kernel<<<b->rows, 256, 0, stream>>>(j);
	const int r = cudaGetLastError();

	return r || !b->m->draft_layers ? r : draft_pass(b, stream);
}

int cuda_model_lay(struct cuda_model_batch *b, const struct cuda_model_part *parts, uint32_t count,
		   bool ids_later, struct CUstream_st *stream)
{
	const bool ids = b->m->p->ids && !ids_later;
	int r = parts_lay(b, parts, count, ids);
	uint32_t row = 0;

	if (r == 0)
		r = limits_set();
	if (r == 0)
		r = to_device(b->positions, b->host_positions, b->rows * 4u, stream);
	if (r == 0)
		r = to_device(b->tile_of, b->host_tiles, b->tiles * sizeof(b->host_tiles[0]),
			      stream);
	if (r == 0)
		r = to_device(b->sequences, b->host_sequences, count * sizeof(b->host_sequences[0]),
			      stream);
	for (uint32_t i = 0; r == 0 && ids && i < count; i++) {
		r = to_device(b->ids + row, parts[i].ids, parts[i].count * 4u, stream);
		row += parts[i].count;
	}
	return r;
}

int cuda_model_start(struct cuda_model_batch *b, const struct cuda_model_part *parts,
		     uint32_t count, struct CUstream_st *stream)
{
	const int r = cuda_model_lay(b, parts, count, false, stream);

	return r ? r : cuda_model_embed(b, stream);
}

void cuda_model_end(struct cuda_model_batch *b)
{
	for (uint32_t i = 0; i < b->parts; i++)
		b->host_parts[i].context->count += b->host_parts[i].count;
	b->parts = 0;
}

/* The kernels of what is known also say how far guesses were off; nobody asks here, and there are none. */
int cuda_model_append(struct cuda_model_batch *b, struct cuda_model_context *c, uint32_t count,
		      const uint8_t *dev_patterns, const uint64_t *off, struct CUstream_st *stream)
{
	struct cuda_model_part part = {};
	int r;

	if (b->m->draft_layers)
		return cudaErrorNotSupported;
	part.context = c;
	part.count = count;
	r = cuda_model_lay(b, &part, 1, true, stream);
	for (uint32_t i = 0; r == 0 && i < 2u * config_of(b)->layers; i++)
		r = known(b, i, dev_patterns + off[i], stream);
	if (r == 0)
		cuda_model_end(b);
	return r;
}

int cuda_model_follow(struct cuda_model_batch *b, struct cuda_model_context *c, const int32_t *ids,
		      uint32_t count, struct CUstream_st *stream)
{
	const struct cuda_model_part part = { c, ids, count };
	int r = b->m->draft_layers ? cudaSuccess : cudaErrorNotSupported;

	if (r == 0)
		r = cuda_model_start(b, &part, 1, stream);
	if (r == 0)
		cuda_model_end(b);
	return r;
}

int cuda_model_digests(struct cuda_model_batch *b, struct CUstream_st *stream, uint32_t *ret)
{
	int r = cudaMemcpyAsync(b->host_sequences, b->sequences,
				b->parts * sizeof(b->host_sequences[0]), cudaMemcpyDeviceToHost,
				stream);

	if (r == 0)
		r = cudaStreamSynchronize(stream);
	for (uint32_t i = 0; r == 0 && i < b->parts; i++)
		ret[i] = b->host_sequences[i].digest;
	return r;
}
