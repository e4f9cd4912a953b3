/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_predictor.c - a predictor's engine (predictor.h) on a GPU: models and prefixes in its memory (cuda_models.c),
 * blocks through them in batches (cuda_slot.c).  The predictor's thread, but for what predictor.h says of sequences
 * that no task has.
 *
 * What other speculators coded, or are to code, the codec does on this thread, and the raw block goes into the
 * prefix, or for a draft its token ids do.
 */
#include "gpu/cuda_predictor.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include <cuda_runtime_api.h>

#include "gpu/codec/format.h"
#include "gpu/codec/internal.h"
#include "gpu/codec/model_profile.h"
#include "gpu/cpu_code.h"
#include "gpu/cuda_internal.h"

/* The symbol is found by its name; nobody includes it. */
int skvcd_cuda_predictor_new_v1(const struct predictor_options *options, struct device **ret_device,
				char *err);

/* ---- tasks ---- */

/* Token ids that the model can be given. */
static bool ids_good(const struct device_task *t)
{
	const struct model_profile *p = t->sequence->profile->model;

	return !p->ids ||
	       (t->tokens && model_ids_good(p, t->tokens, t->region->geom->block_tokens));
}

static bool by_model(const struct device_task *t)
{
	const uint8_t *in = t->in;

	if (t->op == DEVICE_ENCODE)
		return t->speculator == CODEC_SPEC_MODEL && t->profile == t->sequence->profile &&
		       ids_good(t);
	return t->in_bytes > FORMAT_SPECULATOR_OFF && in[FORMAT_SPECULATOR_OFF] == CODEC_SPEC_MODEL;
}

static unsigned batch_max(struct predictor_engine *e, const struct device_task *t)
{
	const struct cuda_engine *c = cuda_engine_of(e);

	if (t->op == DEVICE_PREPARE || !by_model(t))
		return 1;
	return cuda_engine_blocks(c->batch_tokens, t->region->geom);
}

/* ---- one block that the model does not code ---- */

/* Its values go into the prefix; a draft wants to know its ids instead. */
static int append(struct cuda_engine *c, struct cuda_sequence *q, const struct device_task *t,
		  const uint8_t *raw)
{
	const struct codec_geometry *g = q->base.geom;
	const struct cuda_room *o = &q->model->room[0];
	struct cuda_model_batch *b = cuda_model_coder_batch(o->decoder);
	const bool draft = mspec_params_mode(q->base.profile->model->params) == MSPEC_DRAFT;
	int e = 0, last;

	if (draft && !ids_good(t))
		return -ENODATA;
	if (draft)
		e = cuda_model_follow(b, q->context, t->tokens, g->block_tokens, c->stream);
	else
		e = (int)cudaMemcpyAsync(o->raw, raw, g->raw_bytes, cudaMemcpyHostToDevice,
					 c->stream);
	if (e == 0 && !draft)
		e = cuda_model_append(b, q->context, g->block_tokens, o->raw, q->model->off,
				      c->stream);
	last = (int)cudaStreamSynchronize(c->stream); /* what was queued is over, in any case */
	return cuda_engine_told(c, e ? e : last);
}

static int decode_alone(struct cuda_engine *c, struct device_task *t, uint8_t *raw)
{
	const struct codec_view v = { .base = raw };
	int r = codec_decode_from(c->ws, t->region->geom, t->profile, t->in, t->in_bytes,
				  &t->expect_xxh3, &v, 0, NULL);

	t->refusal = (uint8_t)codec_refusal(c->ws);
	if (r == 0 && !t->prefix_only)
		cuda_block_out(t, raw);
	return r;
}

static int encode_alone(struct cuda_engine *c, struct device_task *t, uint8_t *raw)
{
	struct codec_view v = cpu_view(t);

	codec_copy_out(t->region->geom, &v, raw);
	v = (struct codec_view){ .base = raw, .position = t->position };
	return codec_encode(c->ws, t->region->geom, t->profile, t->speculator,
			    t->verify ? CODEC_ENCODE_VERIFY : 0, &v, t->out, t->out_cap_bytes,
			    &t->info);
}

/* No batch is under way. */
static void run_alone(struct cuda_engine *c, struct device_task *t)
{
	struct cuda_sequence *q = cuda_sequence_of(t->sequence);
	const uint32_t before = cuda_sequence_position(t->sequence);
	int r = cuda_sequence_ready(c, q, t->region->geom->block_tokens);

	if (r == 0 && !cuda_position_good(t, cuda_sequence_position(t->sequence))) {
		t->refusal = CODEC_REFUSAL_PREFIX;
		r = t->op == DEVICE_ENCODE ? -EINVAL : -ESTALE;
	}
	if (r == 0)
		r = t->op == DEVICE_ENCODE ? encode_alone(c, t, q->model->room[0].host_raw)
					   : decode_alone(c, t, q->model->room[0].host_raw);
	if (r == 0)
		r = append(c, q, t, q->model->room[0].host_raw);
	if (r < 0)
		cuda_sequence_truncate(t->sequence, before);
	t->res = r;
}

/* ---- what is begun, and ends ---- */

/* Whatever was begun before it has ended, and may have failed it. */
static void begin_alone(struct cuda_engine *c, struct device_task *t)
{
	cuda_slots_end(c);
	if (t->res != 0)
		return;
	if (t->op == DEVICE_PREPARE)
		t->res = cuda_sequence_ready(c, cuda_sequence_of(t->sequence), 0);
	else
		run_alone(c, t);
}

static void begin(struct predictor_engine *e, unsigned turn, struct device_task **tasks,
		  unsigned count)
{
	struct cuda_engine *c = cuda_engine_of(e);
	struct cuda_slot *s = &c->slot[turn];

	cuda_engine_enter(c);
	(void)cudaGetLastError();
	cuda_slot_take(c, s, tasks, count);
	if (tasks[0]->op != DEVICE_PREPARE && by_model(tasks[0])) {
		cuda_slot_begin(c, s);
	} else {
		assert(count == 1);
		begin_alone(c, tasks[0]);
		s->count = 0;
	}
	(void)cudaGetLastError();
}

static void end(struct predictor_engine *e, unsigned turn)
{
	struct cuda_engine *c = cuda_engine_of(e);

	cuda_engine_enter(c);
	cuda_slot_end(c, &c->slot[turn]);
	(void)cudaGetLastError();
}

/* ---- from the first to the last ---- */

static void engine_free(struct predictor_engine *e)
{
	struct cuda_engine *c = cuda_engine_of(e);

	cuda_engine_enter(c);
	while (c->models) {
		struct cuda_resident *m = c->models;

		c->models = m->next;
		cuda_resident_free(m);
	}
	for (unsigned i = 0; i < PREDICTOR_DEPTH_MAX; i++)
		cuda_slot_deinit(&c->slot[i]);
	if (c->stream)
		(void)cudaStreamDestroy(c->stream);
	codec_workspace_free(c->ws);
	free(c);
}

static const struct predictor_engine_ops engine_ops = {
	.sequence_new = cuda_sequence_new,
	.position = cuda_sequence_position,
	.truncate = cuda_sequence_truncate,
	.bytes = cuda_sequence_bytes,
	.sequence_end = cuda_sequence_end,
	.batch_max = batch_max,
	.begin = begin,
	.end = end,
	.free = engine_free,
};

static int engine_init(struct cuda_engine *c, char *err)
{
	int least = 0, greatest = 0, e;
	unsigned sms;

	c->base.ops = &engine_ops;
	c->base.depth = PREDICTOR_DEPTH_MAX;
	if (codec_workspace_new(&c->ws) < 0)
		return gpu_say(err, -ENOMEM, "out of memory");
	cuda_engine_enter(c);
	/* We are guests on this GPU: whatever an engine runs goes first. */
	e = (int)cudaDeviceGetStreamPriorityRange(&least, &greatest);
	if (e == 0)
		e = (int)cudaStreamCreateWithPriority(&c->stream, cudaStreamNonBlocking, least);
	for (unsigned i = 0; e == 0 && i < PREDICTOR_DEPTH_MAX; i++)
		e = cuda_slot_init(c, &c->slot[i], least);
	if (e == 0)
		e = cuda_codec_init(&sms);
	if (e != 0)
		return gpu_say(err, gpu_errno(e), "no stream for models: %s", gpu_error_name(e));
	return 0;
}

int skvcd_cuda_predictor_new_v1(const struct predictor_options *options, struct device **ret_device,
				char *err)
{
	struct device_facts facts;
	struct cuda_engine *c;
	int ordinal, r;

	if (options->batch_tokens == 0 || options->positions_max == 0 ||
	    options->positions_max > PREDICTOR_POSITIONS_MAX)
		return gpu_say(err, -EINVAL, "tokens out of range");
	r = cuda_facts_choose(options->which, &ordinal, &facts, err);
	if (r < 0)
		return r;
	c = calloc(1, sizeof(*c));
	if (!c)
		return gpu_say(err, -ENOMEM, "out of memory");
	c->ordinal = ordinal;
	c->batch_tokens = options->batch_tokens;
	static_assert(PREDICTOR_POSITIONS_MAX <= CUDA_MODEL_POSITIONS_MAX, "what kernels can do");
	c->positions_max = options->positions_max;
	r = engine_init(c, err);
	if (r < 0) {
		engine_free(&c->base);
		return r;
	}
	r = predictor_new(&c->base, options, ret_device);
	return r < 0 ? gpu_say(err, r, "no thread for models") : 0;
}
