/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_predictor.c - see bench_predictor.h.
 */
#include "tools/bench_predictor.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "gpu/device.h"
#include "tools/bench_codec.h"
#include "tools/bench_samples.h"

#define PASSES_MAX 64u
#define STAGING_BYTES (64ull << 20) /* of a device that only makes memory known to the driver */
#define TASKS_MAX 65536u

static double now(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- blocks ---- */

int bench_predictor_keep(struct bench_predictor_blocks *b, const struct codec_geometry *g,
			 const uint8_t *raw, const uint8_t *coded, const struct codec_info *info,
			 uint32_t position, const int32_t *ids)
{
	struct bench_predictor_block *k;

	if (b->count == b->cap) {
		const uint32_t cap = b->cap ? 2u * b->cap : 64u;

		k = realloc(b->block, cap * sizeof(*k));
		if (!k)
			return -ENOMEM;
		b->block = k;
		b->cap = cap;
	}
	k = &b->block[b->count];
	*k = (struct bench_predictor_block){ .raw = malloc(g->raw_bytes),
					     .coded = malloc(info->encoded_bytes),
					     .coded_bytes = info->encoded_bytes,
					     .raw_xxh3 = info->raw_xxh3,
					     .position = position,
					     .ids = ids };
	b->count++;
	if (!k->raw || !k->coded)
		return -ENOMEM;
	memcpy(k->raw, raw, g->raw_bytes);
	memcpy(k->coded, coded, info->encoded_bytes);
	return 0;
}

void bench_predictor_forget(struct bench_predictor_blocks *b)
{
	for (uint32_t i = 0; i < b->count; i++) {
		free(b->block[i].raw);
		free(b->block[i].coded);
	}
	free(b->block);
	*b = (struct bench_predictor_blocks){ NULL, 0, 0 };
}

/* ---- the run ---- */

struct run {
	const struct bench_predictor_options *o;
	const struct codec_geometry *g;
	const struct codec_profile *profile;
	const struct bench_predictor_blocks *b;
	struct device *predictor, *gpu; /* owned; gpu: NULL when simulated */
	uint32_t tasks_count, sequences_count;
	struct device_task *task; /* owned, like all below: [tasks_count] */
	struct device_region *region;
	struct device_sequence **sequence;
	uint32_t *order; /* tasks as they are started */
	uint8_t *memory; /* known to the driver: of each task a raw block, then a payload */
	uint64_t memory_bytes, block_bytes, payload_bytes;
	double pass[PASSES_MAX];
};

static int say(int r, const char *what)
{
	(void)fprintf(stderr, "skvc-bench: the model on a GPU: %s: %s\n", what, strerror(-r));
	return r;
}

static uint8_t *raw_of(const struct run *r, uint32_t task)
{
	return r->memory + task * (r->block_bytes + r->payload_bytes);
}

static uint8_t *payload_of(const struct run *r, uint32_t task)
{
	return raw_of(r, task) + r->block_bytes;
}

static int devices_new(struct run *r)
{
	const struct predictor_options p = { .which = r->o->which ? r->o->which : "auto",
					     .tasks_max = TASKS_MAX,
					     .wake_fd = -1,
					     .batch_tokens = r->o->tokens,
					     .positions_max = PREDICTOR_POSITIONS_MAX,
					     .background_percent = 100 };
	const struct gpu_device_options g = { .which = p.which,
					      .tasks_max = 1,
					      .wake_fd = -1,
					      .staging_bytes = STAGING_BYTES,
					      .share_percent = 100,
					      .background_percent = 100 };
	char path[4096], err[DEVICE_ERR_BYTES] = "";
	const char *library = r->o->library ? r->o->library : path;
	int e;

	if (r->o->sim)
		return sim_predictor_new(&p, &r->predictor);
	bench_cuda_library(path, sizeof(path));
	e = cuda_load_device(library, &g, &r->gpu, err);
	if (e == 0)
		e = cuda_load_predictor(library, &p, &r->predictor, err);
	if (e == 0)
		e = r->gpu->ops->host_register(r->gpu, r->memory, r->memory_bytes);
	return e < 0 && err[0] ? say(e, err) : e;
}

/* Block by block of all sequences, as their loads would come together. */
static void order_make(struct run *r)
{
	uint32_t n = 0;

	for (uint32_t at = 0; n < r->tasks_count; at++)
		for (uint32_t i = 0; i < r->tasks_count; i++)
			if (r->b->block[i % r->b->count].position / r->g->block_tokens == at)
				r->order[n++] = i;
}

static int run_init(struct run *r)
{
	for (uint32_t i = 0; i < r->b->count; i++)
		r->sequences_count += r->b->block[i].position == 0 ? r->o->copies : 0;
	r->tasks_count = r->b->count * r->o->copies;
	if (r->tasks_count > TASKS_MAX)
		return say(-E2BIG, "too many copies");
	if (r->tasks_count == 0 || r->sequences_count == 0)
		return say(-EINVAL, "no block, or no first one of a sequence");
	r->block_bytes = (r->g->raw_bytes + 4095u) & ~4095ull;
	r->payload_bytes = (codec_bound(r->g) + 4095u) & ~4095ull;
	r->memory_bytes = r->tasks_count * (r->block_bytes + r->payload_bytes);
	r->task = calloc(r->tasks_count, sizeof(*r->task));
	r->region = calloc(r->tasks_count, sizeof(*r->region));
	r->order = calloc(r->tasks_count, sizeof(*r->order));
	r->sequence = calloc(r->sequences_count, sizeof(struct device_sequence *));
	if (!r->task || !r->region || !r->order || !r->sequence)
		return -ENOMEM;
	r->memory = mmap(NULL, r->memory_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			 -1, 0);
	if (r->memory == MAP_FAILED) {
		r->memory = NULL;
		return -ENOMEM;
	}
	order_make(r);
	return devices_new(r);
}

static void run_deinit(struct run *r)
{
	for (uint32_t i = 0; i < r->sequences_count && r->sequence && r->predictor; i++)
		r->predictor->ops->sequence_free(r->sequence[i]);
	if (r->predictor)
		r->predictor->ops->free(r->predictor);
	if (r->gpu) {
		r->gpu->ops->host_unregister(r->gpu, r->memory, r->memory_bytes);
		r->gpu->ops->free(r->gpu);
	}
	if (r->memory)
		(void)munmap(r->memory, r->memory_bytes);
	free(r->task);
	free(r->region);
	free(r->order);
	free((void *)r->sequence);
}

static int sequences_new(struct run *r)
{
	for (uint32_t i = 0; i < r->sequences_count; i++) {
		int e = r->predictor->ops->sequence_new(r->predictor, r->g, r->profile,
							&r->sequence[i]);

		if (e < 0)
			return say(e, "this model, or blocks like these");
	}
	return 0;
}

/* All blocks once; the first error of a task. */
static int pass(struct run *r, double *ret_s)
{
	struct device *d = r->predictor;
	struct device_task *done[64];
	double begin = now();
	int e = 0;

	for (uint32_t i = 0; i < r->sequences_count; i++)
		d->ops->sequence_truncate(r->sequence[i], 0);
	for (uint32_t i = 0; i < r->tasks_count; i++) {
		int s = d->ops->start(d, &r->task[r->order[i]]);

		if (s < 0)
			return say(s, "starting a task");
	}
	for (uint32_t left = r->tasks_count; left > 0;) {
		unsigned n = d->ops->poll(d, done, 64);

		for (unsigned i = 0; i < n; i++)
			e = e ? e : done[i]->res;
		left -= n;
		if (n == 0)
			(void)sched_yield();
	}
	*ret_s = now() - begin;
	return e < 0 ? say(e, "a task") : 0;
}

/* The first pass brings the model to the GPU, and does not count. */
static int passes(struct run *r, double *ret_median, uint32_t *ret_passes)
{
	double began = now(), s;
	uint32_t n = 0;
	int e = pass(r, &s);

	while (e == 0 && n < PASSES_MAX && (n < 3 || now() - began < r->o->seconds))
		e = pass(r, &r->pass[n++]);
	if (e < 0)
		return e;
	*ret_median = median(r->pass, n);
	*ret_passes = n;
	return 0;
}

static void tasks_make(struct run *r, enum device_op op, bool prefix_only)
{
	uint32_t sequence = UINT32_MAX;

	for (uint32_t i = 0; i < r->tasks_count; i++) {
		const struct bench_predictor_block *b = &r->b->block[i % r->b->count];

		sequence += b->position == 0;
		r->region[i] = device_region_packed(r->g, raw_of(r, i));
		r->task[i] = (struct device_task){ .op = op,
						   .region = &r->region[i],
						   .speculator = CODEC_SPEC_MODEL,
						   .position = b->position,
						   .sequence = r->sequence[sequence],
						   .prefix_only = prefix_only,
						   .tokens = b->ids,
						   .profile = r->profile,
						   .expect_xxh3 = b->raw_xxh3,
						   .out = payload_of(r, i),
						   .out_cap_bytes = r->payload_bytes };
		if (op == DEVICE_ENCODE) {
			memcpy(raw_of(r, i), b->raw, r->g->raw_bytes);
			continue;
		}
		memcpy(payload_of(r, i), b->coded, b->coded_bytes);
		r->task[i].in = payload_of(r, i);
		r->task[i].in_bytes = b->coded_bytes;
		if (!prefix_only)
			memset(raw_of(r, i), 0xa5, r->g->raw_bytes);
	}
}

static int measure(struct run *r, struct bench_predictor_results *ret)
{
	int e = sequences_new(r);

	if (e < 0)
		return e;
	tasks_make(r, DEVICE_ENCODE, false);
	e = passes(r, &ret->encode_s, &ret->passes);
	for (uint32_t i = 0; e == 0 && i < r->tasks_count; i++) {
		const struct bench_predictor_block *b = &r->b->block[i % r->b->count];

		ret->identical += r->task[i].info.encoded_bytes == b->coded_bytes &&
				  memcmp(payload_of(r, i), b->coded, b->coded_bytes) == 0;
	}
	if (e == 0) {
		tasks_make(r, DEVICE_DECODE, true);
		e = passes(r, &ret->prefix_s, &ret->passes);
	}
	if (e == 0) {
		tasks_make(r, DEVICE_DECODE, false);
		e = passes(r, &ret->decode_s, &ret->passes);
	}
	for (uint32_t i = 0; e == 0 && i < r->tasks_count; i++)
		ret->verified += memcmp(raw_of(r, i), r->b->block[i % r->b->count].raw,
					r->g->raw_bytes) == 0;
	return e;
}

int bench_predictor_run(const struct bench_predictor_options *o, const struct codec_geometry *g,
			const struct codec_profile *profile, const struct bench_predictor_blocks *b,
			struct bench_predictor_results *ret)
{
	struct run r = { .o = o, .g = g, .profile = profile, .b = b };
	int e = run_init(&r);

	*ret = (struct bench_predictor_results){ .blocks = r.tasks_count,
						 .sequences = r.sequences_count,
						 .raw_bytes = r.tasks_count * g->raw_bytes };
	if (e == 0) {
		(void)snprintf(ret->name, sizeof(ret->name), "%s", o->sim ? "sim" : "cuda");
		e = measure(&r, ret);
	}
	run_deinit(&r);
	if (e == 0 && (ret->identical != ret->blocks || ret->verified != ret->blocks))
		return say(-EBADMSG, "blocks are not the CPU's");
	return e;
}
