/* SPDX-License-Identifier: Apache-2.0 */
/*
 * predictor_cpu.c - the codec as a predictor's engine: one task after the other, on its thread.  What a lane sees of
 * it is what it sees of a GPU's; for `[gpu] device = sim`.
 */
#include <errno.h>
#include <stdlib.h>

#include "gpu/cpu_code.h"
#include "gpu/predictor.h"

struct cpu_sequence {
	struct device_sequence base;
	struct codec_sequence *s; /* owned */
};

struct cpu_engine {
	struct predictor_engine base;
	uint32_t batch_tokens;
	struct codec_workspace *ws; /* owned */
};

static struct cpu_sequence *sequence_of(const struct device_sequence *s)
{
	return (struct cpu_sequence *)(uintptr_t)s;
}

static int sequence_new(struct predictor_engine *e, const struct codec_geometry *g,
			const struct codec_profile *profile, struct device_sequence **ret)
{
	struct cpu_sequence *s = calloc(1, sizeof(*s));
	int r;

	(void)e;
	if (!s)
		return -ENOMEM;
	r = codec_sequence_new(g, profile, NULL, &s->s);
	if (r < 0) {
		free(s);
		return r;
	}
	*ret = &s->base;
	return 0;
}

static uint32_t sequence_position(const struct device_sequence *s)
{
	return codec_sequence_position(sequence_of(s)->s);
}

static void sequence_truncate(struct device_sequence *s, uint32_t position)
{
	(void)codec_sequence_truncate(sequence_of(s)->s, position);
}

static uint64_t sequence_bytes(const struct device_sequence *s)
{
	return codec_sequence_bytes(sequence_of(s)->s);
}

static void sequence_end(struct predictor_engine *e, struct device_sequence *s)
{
	(void)e;
	codec_sequence_free(sequence_of(s)->s);
	free(sequence_of(s));
}

static unsigned batch_max(struct predictor_engine *e, const struct device_task *t)
{
	unsigned n = ((struct cpu_engine *)e)->batch_tokens / t->sequence->geom->block_tokens;

	return n && t->op != DEVICE_PREPARE ? n : 1;
}

/* Has one of the same sequence failed in this batch? */
static int behind_failed(struct device_task **tasks, unsigned i)
{
	for (unsigned before = 0; before < i; before++)
		if (tasks[before]->sequence == tasks[i]->sequence && tasks[before]->res < 0)
			return 1;
	return 0;
}

static void begin(struct predictor_engine *e, unsigned turn, struct device_task **tasks,
		  unsigned count)
{
	struct codec_workspace *ws = ((struct cpu_engine *)e)->ws;

	(void)turn;
	for (unsigned i = 0; i < count; i++) {
		struct device_task *t = tasks[i];
		struct codec_sequence *s = sequence_of(t->sequence)->s;

		if (t->op == DEVICE_PREPARE)
			t->res = 0;
		else if (behind_failed(tasks, i))
			t->res = -ECANCELED;
		else
			t->res = t->op == DEVICE_ENCODE ? cpu_encode(ws, t, s)
							: cpu_decode(ws, t, s);
	}
}

/* That was all. */
static void end(struct predictor_engine *e, unsigned turn)
{
	(void)e;
	(void)turn;
}

static void engine_free(struct predictor_engine *e)
{
	struct cpu_engine *c = (struct cpu_engine *)e;

	codec_workspace_free(c->ws);
	free(c);
}

static const struct predictor_engine_ops engine_ops = {
	.sequence_new = sequence_new,
	.position = sequence_position,
	.truncate = sequence_truncate,
	.bytes = sequence_bytes,
	.sequence_end = sequence_end,
	.batch_max = batch_max,
	.begin = begin,
	.end = end,
	.free = engine_free,
};

int sim_predictor_new(const struct predictor_options *options, struct device **ret_device)
{
	struct cpu_engine *c = calloc(1, sizeof(*c));
	int r;

	if (!c)
		return -ENOMEM;
	c->base.ops = &engine_ops;
	c->base.depth = 1;
	c->batch_tokens = options->batch_tokens;
	r = codec_workspace_new(&c->ws);
	if (r < 0) {
		engine_free(&c->base);
		return r;
	}
	return predictor_new(&c->base, options, ret_device);
}
