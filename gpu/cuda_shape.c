/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_shape.c - what is asked of a geometry for every task and costs a walk over its segments, worked out once.
 * The lane's thread.  A namespace's geometry stays where it is, but a test's may not, so its digest is compared.
 */
#include "gpu/cuda_internal.h"

#include <string.h>

/* Scratch is something fixed and so much for each task. */
static uint32_t tasks_max(size_t one, size_t two, uint64_t room)
{
	uint64_t n;

	if (one > room)
		return 0;
	n = two > one ? 1u + (room - one) / (two - one) : CUDA_BATCH_TASKS_MAX;
	return n < CUDA_BATCH_TASKS_MAX ? (uint32_t)n : CUDA_BATCH_TASKS_MAX;
}

static void shape_fill(const struct cuda_device *d, const struct codec_geometry *g,
		       struct cuda_shape *s)
{
	memset(s, 0, sizeof(*s));
	s->geom = g;
	memcpy(s->digest, g->digest, sizeof(s->digest));
	s->regular = cuda_codec_geometry_ok(g);
	s->bound_bytes = codec_bound(g);
	s->tasks_max[CUDA_CLASS_STORE] = tasks_max(cuda_codec_encode_scratch(g, 1),
						   cuda_codec_encode_scratch(g, 2),
						   d->stores_scratch_bytes);
	s->tasks_max[CUDA_CLASS_LOAD] = tasks_max(cuda_codec_decode_scratch(g, 1),
						  cuda_codec_decode_scratch(g, 2),
						  d->loads_scratch_bytes);
}

const struct cuda_shape *cuda_shape_of(struct cuda_device *d, const struct codec_geometry *g)
{
	struct cuda_shape *s = NULL;

	for (uint32_t i = 0; i < d->shapes_count && !s; i++)
		if (d->shape[i].geom == g)
			s = &d->shape[i];
	if (s && memcmp(s->digest, g->digest, sizeof(s->digest)) == 0)
		return s;
	if (!s && d->shapes_count < CUDA_SHAPES_MAX)
		s = &d->shape[d->shapes_count++];
	if (!s)
		s = &d->shape[d->shapes_next++ % CUDA_SHAPES_MAX];
	shape_fill(d, g, s);
	return s;
}

/* Profiles live as long as the daemon, so an address is enough. */
const struct cuda_layers *cuda_layers_of(struct cuda_device *d, const struct codec_geometry *g,
					 const struct codec_profile *profile)
{
	struct cuda_layers *l;

	for (uint32_t i = 0; i < CUDA_LAYERS_MAX; i++)
		if (d->layers[i].key == profile)
			return &d->layers[i];
	l = &d->layers[d->layers_next++ % CUDA_LAYERS_MAX];
	*l = (struct cuda_layers){ .key = profile, .ok = cuda_codec_layer_ok(g, profile) };
	if (l->ok > 0) {
		l->tasks_max[CUDA_CLASS_STORE] = cuda_codec_layer_tasks(g, profile, 1,
									d->stores_scratch_bytes);
		l->tasks_max[CUDA_CLASS_LOAD] = cuda_codec_layer_tasks(g, profile, 0,
								       d->loads_scratch_bytes);
	}
	return l;
}
