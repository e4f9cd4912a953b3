/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_model_load.cu - weights and parameters into device memory, contexts, and the scratch of a batch.
 */
#include <stdlib.h>
#include <string.h>

#include "gpu/codec/cuda_model_objects.cuh"

/* ---- weights into pieces ---- */

/* grid: pieces of outputs, pieces of columns */
__global__ void pieces_kernel(const uint8_t *from, uint32_t outs, uint32_t pitch, uint8_t *to)
{
	uint8_t *piece = to + ((uint64_t)blockIdx.x * gridDim.y + blockIdx.y) * MPIECE_BYTES;

	for (uint32_t n = threadIdx.x; n < MPIECE_BYTES / 16u; n += blockDim.x) {
		const uint32_t r = n / 8u, column = blockIdx.y * MPIECE + n % 8u * 16u;
		const uint32_t row = blockIdx.x * MPIECE + r;
		uint4 x = make_uint4(0, 0, 0, 0);

		if (row < outs && column < pitch)
			x = *(const uint4 *)(from + (uint64_t)row * pitch + column);
		*(uint4 *)(piece + mpiece_at(r, n % 8u * 16u)) = x;
	}
}

struct loading {
	struct cuda_arena a;
	struct cuda_model *m;
	struct CUstream_st *stream;
	uint8_t *staging; /* device; of the largest plane as the host has it */
	size_t staging_bytes;
	int error;
};

static const void *load_bytes(struct loading *l, const void *from, size_t bytes)
{
	void *to = arena_take(&l->a, bytes);

	if (to && l->error == 0)
		l->error = cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, l->stream);
	return to;
}

static const uint8_t *load_plane(struct loading *l, const struct mspec_matrix *m,
				 const int8_t *plane)
{
	const size_t bytes = (size_t)m->outs * m->pitch;
	const dim3 grid(mpieces(m->outs), mpieces(m->depth));
	uint8_t *to = (uint8_t *)arena_take(&l->a, (size_t)grid.x * grid.y * MPIECE_BYTES);

	l->staging_bytes = bytes > l->staging_bytes ? bytes : l->staging_bytes;
	if (!to || l->error)
		return to;
	l->error = cudaMemcpyAsync(l->staging, plane, bytes, cudaMemcpyHostToDevice, l->stream);
	pieces_kernel<<<grid, 256, 0, l->stream>>>(l->staging, m->outs, m->pitch, to);
	if (l->error == 0)
		l->error = cudaGetLastError();
	return to;
}

/* Two outputs' scales are read at a time. */
static const void *load_scales(struct loading *l, const void *from, uint32_t outs)
{
	const void *to = load_bytes(l, from, outs * 2u);

	(void)arena_take(&l->a, 2u);
	return to;
}

static void load_matrix(struct loading *l, const struct mspec_matrix *m, uint32_t wide,
			struct gpu_matrix *ret)
{
	ret->outs = m->outs;
	ret->depth = m->depth;
	ret->depth_pieces = mpieces(m->depth);
	ret->mixed = m->mixed;
	ret->high = load_plane(l, m, m->high);
	ret->low = wide & MODEL_WIDE_WEIGHT ? load_plane(l, m, m->low) : NULL;
	ret->mants = (const uint16_t *)load_scales(l, m->mants, m->outs);
	ret->exps = (const int16_t *)load_scales(l, m->exps, m->outs);
}

static void load_norm(struct loading *l, const struct mspec_norm *n, uint32_t count,
		      struct gpu_norm *ret)
{
	ret->frac = n->frac;
	ret->weights = n->weights ? (const int16_t *)load_bytes(l, n->weights, count * 2u) : NULL;
}

/* What is not there is zeros. */
static const int32_t *load_bias(struct loading *l, const int32_t *from, uint32_t count)
{
	void *to;

	if (from)
		return (const int32_t *)load_bytes(l, from, count * 4u);
	to = arena_take(&l->a, count * 4u);
	if (to && l->error == 0)
		l->error = cudaMemsetAsync(to, 0, count * 4u, l->stream);
	return (const int32_t *)to;
}

/* What a copy corrects its guesses and its hidden state with. */
static void load_corrections(struct loading *l, const struct mspec_layer *from, uint32_t kv,
			     struct gpu_model_layer *to)
{
	const uint32_t wide = l->m->p->precision.wide[MSPEC_MAPS];

	load_matrix(l, &from->value_map, wide, &to->value_map);
	load_matrix(l, &from->gain_k, wide, &to->gain_k);
	load_matrix(l, &from->gain_v, wide, &to->gain_v);
	to->sigma_k = (const int16_t *)load_bytes(l, from->sigma_k, kv * 2u);
	to->sigma_v = (const int16_t *)load_bytes(l, from->sigma_v, kv * 2u);
}

static void load_layer(struct loading *l, uint32_t layer)
{
	const struct mspec_params *p = l->m->p;
	const struct model_config *c = &p->model->config;
	const struct mspec_weights *w = &p->model->layers[layer];
	const struct mspec_layer *from = &p->layers[layer];
	const uint8_t *wide = p->precision.wide;
	const uint32_t kv = mspec_kv_width(c);
	struct gpu_model_layer *to = &l->m->layers[layer];

	load_matrix(l, &w->q, wide[MSPEC_Q], &to->q);
	load_matrix(l, &w->kv, wide[MSPEC_KV], &to->kv);
	load_matrix(l, &w->o, wide[MSPEC_O], &to->o);
	load_matrix(l, &w->gate_up, wide[MSPEC_GATE], &to->gate_up);
	load_matrix(l, &w->down, wide[MSPEC_DOWN], &to->down);
	load_norm(l, &w->input, c->hidden, &to->input);
	load_norm(l, &w->post, c->hidden, &to->post);
	load_norm(l, &w->q_norm, c->head_dim, &to->q_norm);
	load_norm(l, &w->k_norm, c->head_dim, &to->k_norm);
	to->bias_k = load_bias(l, from->bias_k, kv);
	to->bias_v = load_bias(l, from->bias_v, kv);
	if (!p->draft)
		load_corrections(l, from, kv, to);
	to->k_frac = from->k_frac;
	to->v_frac = from->v_frac;
	to->unit_k = from->unit_k;
	to->unit_v = from->unit_v;
	to->score = from->score;
	to->real_v = from->real_v;
	to->eps_input = from->eps_input;
	to->eps_post = from->eps_post;
}

static void load_draft_layer(struct loading *l, uint32_t layer)
{
	const struct mspec_draft *d = l->m->p->draft;
	const struct mspec_draft_layer *from = &d->layers[layer];
	const uint32_t wide = l->m->p->precision.wide[MSPEC_MAPS];
	const uint32_t count = 2u * mspec_shape_kv(d->shape);
	struct gpu_draft_layer *to = &l->m->draft_layers[layer];

	for (uint32_t i = 0; i < MSPEC_TAPS; i++)
		load_matrix(l, &from->tap[i], wide, &to->tap[i]);
	for (uint32_t i = 0; i < mspec_draft_past(d, layer); i++)
		load_matrix(l, &from->past[i], wide, &to->past[i]);
	load_matrix(l, &from->own, wide, &to->own);
	to->bias = load_bias(l, from->bias, count);
	to->weigh = (const int16_t *)load_bytes(l, from->weigh, count * 2u);
}

static void load_draft(struct loading *l, const struct mspec_draft *d)
{
	for (uint32_t i = 0; i < MSPEC_TAPS; i++)
		load_norm(l, &d->norm[i], l->m->p->model->config.hidden, &l->m->tap_norm[i]);
	for (uint32_t i = 0; i < d->shape.layers; i++)
		load_draft_layer(l, i);
}

static void load_all(struct loading *l)
{
	struct cuda_model *m = l->m;
	const struct mspec_model *from = m->p->model;
	const struct mspec_matrix *e = &from->embedding;

	if (m->p->ids) {
		const size_t bytes = (size_t)e->outs * e->pitch;

		m->embedding_high = (const int8_t *)load_bytes(l, e->high, bytes);
		m->embedding_low = (const int8_t *)load_bytes(l, e->low, bytes);
		m->embedding_mants = (const uint16_t *)load_scales(l, e->mants, e->outs);
		m->embedding_exps = (const int16_t *)load_scales(l, e->exps, e->outs);
	}
	m->start = (const int32_t *)load_bytes(l, m->p->start, from->config.hidden * 4u);
	m->sigmoid = (const int32_t *)load_bytes(l, from->tables.sigmoid,
						 sizeof(from->tables.sigmoid));
	m->exp = (const uint16_t *)load_bytes(l, from->tables.exp, sizeof(from->tables.exp));
	for (uint32_t i = 0; i < from->config.layers; i++)
		load_layer(l, i);
	if (m->p->draft)
		load_draft(l, m->p->draft);
}

int cuda_model_new(const struct mspec_params *p, struct CUstream_st *stream,
		   struct cuda_model **ret)
{
	struct cuda_model *m = (struct cuda_model *)calloc(1, sizeof(*m));
	struct loading l = {};

	if (!m)
		return cudaErrorMemoryAllocation;
	m->p = p;
	m->layers = (struct gpu_model_layer *)calloc(p->model->config.layers, sizeof(m->layers[0]));
	l.m = m;
	l.stream = stream;
	if (p->draft)
		m->draft_layers = (struct gpu_draft_layer *)calloc(p->draft->shape.layers,
								   sizeof(m->draft_layers[0]));
	l.error = m->layers && (m->draft_layers || !p->draft) ? 0 : cudaErrorMemoryAllocation;
	if (l.error == 0) {
		load_all(&l);
		m->bytes = l.a.at;
		l.error = cudaMalloc(&m->memory, l.a.at);
	}
	if (l.error == 0)
		l.error = cudaMalloc(&l.staging, l.staging_bytes);
	if (l.error == 0) {
		l.a = (struct cuda_arena){ m->memory, 0 };
		load_all(&l);
	}
	if (l.error == 0)
		l.error = cudaStreamSynchronize(stream);
	(void)cudaFree(l.staging);
	if (l.error) {
		cuda_model_free(m);
		return l.error;
	}
	*ret = m;
	return 0;
}

struct cuda_model *cuda_model_free(struct cuda_model *m)
{
	if (!m)
		return NULL;
	(void)cudaFree(m->memory);
	(void)cudaFree(m->rope);
	(void)cudaFree(m->cache_rope);
	free(m->layers);
	free(m->draft_layers);
	free(m);
	return NULL;
}

size_t cuda_model_bytes(const struct cuda_model *m)
{
	return m->bytes;
}

/* ---- contexts ---- */

static size_t context_bytes(const struct model_config *c, uint32_t capacity)
{
	return (size_t)c->layers * 4u * c->kv_heads * capacity * model_dim_padded(c->head_dim);
}

int cuda_model_context_new(const struct cuda_model *m, uint32_t tokens_max,
			   struct CUstream_st *stream, struct cuda_model_context **ret)
{
	struct cuda_model_context *x;
	size_t bytes;
	int r;

	if (tokens_max == 0 || tokens_max > CUDA_MODEL_POSITIONS_MAX)
		return cudaErrorInvalidValue;
	x = (struct cuda_model_context *)calloc(1, sizeof(*x));
	if (!x)
		return cudaErrorMemoryAllocation;
	x->capacity = mpieces(tokens_max) * MPIECE;
	bytes = context_bytes(&m->p->model->config, x->capacity);
	r = cudaMalloc(&x->values, bytes);
	if (r == 0)
		r = cudaMemsetAsync(x->values, 0, bytes, stream);
	if (r == 0)
		r = cudaStreamSynchronize(stream);
	if (r) {
		cuda_model_context_free(x);
		return r;
	}
	*ret = x;
	return 0;
}

struct cuda_model_context *cuda_model_context_free(struct cuda_model_context *c)
{
	if (!c)
		return NULL;
	(void)cudaFree(c->values);
	free(c);
	return NULL;
}

/* Rows of a plane: by head, and where values are not in pieces, by dim. */
static int planes_copy(struct cuda_model_context *to, const struct cuda_model_context *from,
		       size_t off, size_t rows, size_t unit, struct CUstream_st *stream)
{
	return cudaMemcpy2DAsync(to->values + off * to->capacity, unit * to->capacity,
				 from->values + off * from->capacity, unit * from->capacity,
				 unit * from->capacity, rows, cudaMemcpyDeviceToDevice, stream);
}

static int context_copy(const struct model_config *c, struct cuda_model_context *to,
			const struct cuda_model_context *from, struct CUstream_st *stream)
{
	const size_t padded = model_dim_padded(c->head_dim), heads = 2u * c->kv_heads;
	const bool pieces = padded == MPIECE;
	int r = 0;

	for (uint32_t l = 0; r == 0 && l < c->layers; l++) {
		const size_t off = l * 2u * heads * padded;

		r = planes_copy(to, from, off, heads, padded, stream);
		if (r == 0)
			r = planes_copy(to, from, off + heads * padded,
					pieces ? heads : heads * padded, pieces ? padded : 1u,
					stream);
	}
	return r ? r : cudaStreamSynchronize(stream);
}

int cuda_model_context_grow(const struct cuda_model *m, struct cuda_model_context *c,
			    uint32_t tokens_max, struct CUstream_st *stream)
{
	struct cuda_model_context *x = NULL;
	struct cuda_model_context old;
	int r;

	if (tokens_max <= c->capacity)
		return 0;
	r = cuda_model_context_new(m, tokens_max, stream, &x);
	if (r == 0)
		r = context_copy(&m->p->model->config, x, c, stream);
	if (r) {
		cuda_model_context_free(x);
		return r;
	}
	old = *c;
	c->values = x->values;
	c->capacity = x->capacity;
	x->values = old.values;
	cuda_model_context_free(x);
	return 0;
}

size_t cuda_model_context_bytes(const struct cuda_model *m, const struct cuda_model_context *c)
{
	return context_bytes(&m->p->model->config, c->capacity);
}

uint32_t cuda_model_context_capacity(const struct cuda_model_context *c)
{
	return c->capacity;
}

void cuda_model_context_truncate(struct cuda_model_context *c, uint32_t count)
{
	c->count = count < c->count ? count : c->count;
}

void cuda_model_context_reset(struct cuda_model_context *c)
{
	c->count = 0;
}

uint32_t cuda_model_context_count(const struct cuda_model_context *c)
{
	return c->count;
}

/* ---- a batch ---- */

static uint32_t max_of(uint32_t a, uint32_t b)
{
	return a > b ? a : b;
}

static void batch_place(struct cuda_model_batch *b, struct cuda_arena *a)
{
	const struct model_config *c = &b->m->p->model->config;
	const struct mspec_draft *d = b->m->p->draft;
	const uint32_t q = mspec_q_width(c), own = mspec_kv_width(c);
	const uint32_t cache = d ? mspec_shape_kv(d->shape) : own, kv = max_of(own, cache);
	const uint32_t depth = max_of(max_of(c->hidden, c->mlp), max_of(q, kv));
	const uint32_t out = max_of(max_of(2u * c->mlp, q), 2u * kv);
	const size_t rows = b->rows_max,
		     plane = (size_t)mpieces(depth) * mpieces(b->rows_max) * MPIECE_BYTES;
	const size_t queries = rows * c->heads * model_dim_padded(c->head_dim);

	b->hidden = (int32_t *)arena_take(a, rows * c->hidden * 4u);
	if (d) {
		b->embedding = (int32_t *)arena_take(a, rows * c->hidden * 4u);
		b->sums = (int32_t *)arena_take(a, rows * 2u * cache * 4u);
		b->exact = (int32_t *)arena_take(a, (d->previous + 1u) * rows * 2u * cache * 4u);
	} else {
		b->error = (int32_t *)arena_take(a, rows * 2u * own * 4u);
	}
	b->out = (int32_t *)arena_take(a, rows * out * 4u);
	b->mu_k = (int32_t *)arena_take(a, rows * kv * 4u);
	b->mu_v = (int32_t *)arena_take(a, rows * kv * 4u);
	b->ids = (int32_t *)arena_take(a, rows * 4u);
	b->positions = (uint32_t *)arena_take(a, rows * 4u);
	b->high = (uint8_t *)arena_take(a, plane);
	b->low = (uint8_t *)arena_take(a, plane);
	b->query_high = (uint8_t *)arena_take(a, queries);
	b->query_low = (uint8_t *)arena_take(a, queries);
	b->row_scale = (struct model_scale *)arena_take(a, rows * sizeof(struct model_scale));
	b->step = (struct model_scale *)arena_take(a, rows * c->heads * sizeof(struct model_scale));
	b->tile_of = (struct gpu_model_tile *)arena_take(a, b->tiles_max *
								    sizeof(struct gpu_model_tile));
	b->sequences = (struct gpu_model_sequence *)arena_take(
		a, b->parts_max * sizeof(struct gpu_model_sequence));
}

/* In place of what was in *turns.  Waits. */
static int turns_load(int32_t **turns, const double *frequencies, uint32_t dim, bool coarse,
		      uint32_t positions, struct CUstream_st *stream)
{
	const size_t bytes = (size_t)positions * dim * sizeof(int32_t);
	int32_t *rope = (int32_t *)malloc(bytes), *device = NULL;
	int r = rope ? cudaMalloc(&device, bytes) : cudaErrorMemoryAllocation;

	for (uint32_t i = 0; r == 0 && i < positions; i++)
		model_rope_row(frequencies, dim / 2u, i, coarse, rope + (size_t)i * dim);
	if (r == 0)
		r = cudaMemcpyAsync(device, rope, bytes, cudaMemcpyHostToDevice, stream);
	if (r == 0)
		r = cudaStreamSynchronize(stream);
	free(rope);
	if (r) {
		(void)cudaFree(device);
		return r;
	}
	(void)cudaFree(*turns);
	*turns = device;
	return 0;
}

/* Once for all batches, if they want no more positions than there are. */
static int rope_load(struct cuda_model *m, uint32_t positions, struct CUstream_st *stream)
{
	const struct mspec_model *of = m->p->model;
	const struct mspec_draft *d = m->p->draft;
	int r = 0;

	if (positions <= m->rope_positions)
		return 0;
	/* coarse: the cache's, as whoever made it has it. */
	r = turns_load(&m->rope, of->frequencies, of->config.head_dim, m->p->coarse_rope && !d,
		       positions, stream);
	if (r == 0 && d)
		r = turns_load(&m->cache_rope, d->frequencies, d->shape.head_dim, m->p->coarse_rope,
			       positions, stream);
	if (r == 0)
		m->rope_positions = positions;
	return r;
}

static void staging_place(struct cuda_model_batch *b, struct cuda_arena *a)
{
	b->host_positions = (uint32_t *)arena_take(a, b->rows_max * sizeof(b->host_positions[0]));
	b->host_tiles =
		(struct gpu_model_tile *)arena_take(a, b->tiles_max * sizeof(b->host_tiles[0]));
	b->host_sequences = (struct gpu_model_sequence *)arena_take(
		a, b->parts_max * sizeof(b->host_sequences[0]));
}

/* Pinned: a copy of pageable memory may wait for the stream. */
static int staging_new(struct cuda_model_batch *b)
{
	struct cuda_arena a = {};
	int r;

	staging_place(b, &a);
	r = cudaMallocHost(&b->staging, a.at);
	if (r)
		return r;
	a = (struct cuda_arena){ b->staging, 0 };
	staging_place(b, &a);
	return 0;
}

int cuda_model_batch_new(struct cuda_model *m, uint32_t rows_max, uint32_t parts_max,
			 uint32_t positions_max, struct CUstream_st *stream,
			 struct cuda_model_batch **ret)
{
	struct cuda_model_batch *b = (struct cuda_model_batch *)calloc(1, sizeof(*b));
	struct cuda_arena a = {};
	int r;

	if (!b)
		return cudaErrorMemoryAllocation;
	b->m = m;
	b->rows_max = rows_max;
	b->parts_max = parts_max;
	b->positions_max = positions_max;
	b->tiles_max = rows_max / MTILE + parts_max;
	b->host_parts = (struct cuda_model_part *)calloc(parts_max, sizeof(b->host_parts[0]));
	r = b->host_parts ? staging_new(b) : (int)cudaErrorMemoryAllocation;
	batch_place(b, &a);
	if (r == 0)
		r = cudaMalloc(&b->memory, a.at);
	if (r == 0) {
		a = (struct cuda_arena){ b->memory, 0 };
		batch_place(b, &a);
		r = rope_load(m, positions_max, stream);
	}
	if (r) {
		cuda_model_batch_free(b);
		return r;
	}
	*ret = b;
	return 0;
}

struct cuda_model_batch *cuda_model_batch_free(struct cuda_model_batch *b)
{
	if (!b)
		return NULL;
	(void)cudaFree(b->memory);
	(void)cudaFreeHost(b->staging);
	free(b->host_parts);
	free(b);
	return NULL;
}
