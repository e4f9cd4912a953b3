/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_fit.c - see bench_fit.h.  One thread.
 */
#include "tools/bench_fit.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gpu/codec/layer_code.h"
#include "gpu/model/file.h"
#include "gpu/model/report.h"

#define PROFILE_BYTES_MAX (4ull << 30)

static int fail(const char *what, int r)
{
	if (r < 0)
		(void)fprintf(stderr, "skvc-bench: %s: %s\n", what, strerror(-r));
	return r;
}

int bench_fit_channel(const struct kv_dump *d, uint32_t blocks, struct codec_profile **ret)
{
	struct codec_fit *fit;
	int r = codec_fit_new(&d->g, &fit);

	if (r < 0)
		return fail("fitting the channels", r);
	for (uint32_t i = 0; i < blocks; i++) {
		struct codec_view v = { .base = d->blocks, .block_index = i };

		codec_fit_add(fit, &v);
	}
	r = codec_fit_finish(fit, ret);
	codec_fit_free(fit);
	return fail("fitting the channels", r);
}

int bench_fit_layer(const struct kv_dump *d, uint32_t blocks, uint32_t previous,
		    const struct codec_profile *base, struct codec_profile **ret)
{
	return fail("fitting the maps",
		    codec_profile_fit_layer(&d->g, base, d->blocks, d->positions, blocks, previous,
					    ret));
}

int bench_fit_rescale(const struct kv_dump *from, const struct kv_dump *to,
		      struct codec_profile **p)
{
	double ratio[CODEC_SEGMENTS_MAX];
	struct codec_profile *scaled;
	int r;

	for (uint32_t i = 0; i < to->g.segments_count; i++)
		ratio[i] = to->scales && from->scales ? to->scales[i] / from->scales[i] : 1;
	r = codec_profile_rescale(&to->g, *p, ratio, &scaled);
	if (r < 0)
		return fail("moving the profile to other scales", r);
	codec_profile_free(*p);
	*p = scaled;
	return 0;
}

int bench_profile_read(const struct codec_geometry *g, const char *path, struct codec_profile **ret)
{
	char err[REPORT_BYTES] = "", *bytes = NULL;
	const struct report report = { path, err, sizeof(err) };
	size_t count;
	int r = file_read(&report, path, PROFILE_BYTES_MAX, &bytes, &count);

	if (r < 0) {
		(void)fprintf(stderr, "skvc-bench: %s\n", err);
		return r;
	}
	r = codec_profile_parse(g, bytes, count, ret);
	free(bytes);
	if (r == -ESTALE)
		(void)fprintf(stderr,
			      "skvc-bench: %s: a profile of another version, or of other layers, "
			      "heads, type or tokens of a block\n",
			      path);
	else if (r < 0)
		(void)fprintf(stderr, "skvc-bench: %s: %s\n", path,
			      r == -EBADMSG ? "no sound profile" : strerror(-r));
	return r;
}

int bench_profile_write(const struct codec_profile *p, const char *path)
{
	size_t count, done;
	const void *bytes = codec_profile_bytes(p, &count);
	char temporary[4096];
	int r = 0;
	FILE *f;

	if (snprintf(temporary, sizeof(temporary), "%s.%d", path, (int)getpid()) >=
	    (int)sizeof(temporary))
		return fail(path, -ENAMETOOLONG);
	f = fopen(temporary, "wbx");
	if (!f)
		return fail(temporary, -errno);
	done = fwrite(bytes, 1, count, f);
	if (done != count || fflush(f) != 0 || fsync(fileno(f)) != 0)
		r = -errno;
	if (fclose(f) != 0 && r == 0)
		r = -errno;
	if (r == 0 && rename(temporary, path) < 0)
		r = -errno;
	if (r < 0)
		(void)unlink(temporary);
	return fail(path, r);
}

/* ---- where the bits go ---- */

struct scratch {
	struct residual_encoder *encoder;
	struct layer_turn *turns;
	int32_t *values;
	int8_t *inputs;
};

static void scratch_deinit(struct scratch *s)
{
	residual_encoder_free(s->encoder);
	free(s->turns);
	free(s->values);
	free(s->inputs);
}

static int scratch_init(struct scratch *s, const struct layer_profile *p, uint32_t tokens)
{
	int r = residual_encoder_new(&s->encoder);

	s->turns = calloc((size_t)tokens * p->pairs + 1u, sizeof(*s->turns));
	s->values = calloc((size_t)tokens * p->columns_max, sizeof(*s->values));
	s->inputs = calloc((size_t)tokens * p->columns, 1);
	return r < 0 ? r : s->turns && s->values && s->inputs ? 0 : -ENOMEM;
}

int bench_segment_bits(const struct codec_geometry *g, const struct codec_profile *profile,
		       const uint8_t *block, uint32_t position, double *bits)
{
	const struct layer_profile *p = profile->layer;
	uint32_t tokens = g->block_tokens;
	struct scratch w = { 0 };
	uint64_t escapes = 0;
	int r = scratch_init(&w, p, tokens);

	if (r == 0)
		layer_turns(p, position, tokens, w.turns);
	for (uint32_t i = 0; r == 0 && i < p->segments_count; i++) {
		const struct layer_segment *s = &p->segments[i];
		const uint8_t *patterns = block + g->segment_off[s->segment];
		const struct residual_segment c = { .tokens_count = tokens,
						    .columns = s->columns,
						    .type = s->type,
						    .tables = &p->tables[s->tables],
						    .base = s->base,
						    .mu = w.values };
		struct residual_bits b = { 0 };

		layer_guess(p, s, w.turns, tokens, w.inputs, w.values);
		residual_encoder_start(w.encoder, p->streams_count);
		r = residual_encode(w.encoder, &c, patterns, &escapes, &b);
		bits[s->segment] += b.token + b.raw + b.tau;
		layer_values(p, s, w.turns, tokens, patterns, w.values);
		layer_inputs(p, s, tokens, w.values, w.inputs);
	}
	scratch_deinit(&w);
	return r;
}
