/* SPDX-License-Identifier: Apache-2.0 */
/*
 * profiler.c - how a namespace gets its profile: the first blocks stored are also copied raw into a small
 * buffer, a background task adds them to the namespace's statistics, and at set numbers of tokens the
 * statistics are frozen as a profile.  New blocks use the newest; old blocks keep theirs.
 *
 * Until the first profile is frozen, stores of the namespace wait for a fit that is running, a quarter of a
 * second at most, rather than being stored badly.
 */
#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "daemon/lane_state.h"

#define SAMPLE_BYTES_MAX (32ull << 20) /* of one namespace */
#define SAMPLE_BLOCKS_MAX 64u
/* A fit of the first sample takes 20..60 ms of a core; on a busy machine, at its low priority, much longer. */
#define PROFILER_PARK_NS 250000000ull

int profiler_ns_init(struct lane *lane, struct namespace *ns)
{
	uint64_t fit = SAMPLE_BYTES_MAX / ns->geom.raw_bytes;
	int r;

	if (lane->config.speculator != CODEC_SPEC_CHANNEL)
		return 0;
	r = codec_fit_new(&ns->geom, &ns->fit);
	if (r == -E2BIG) /* more channels than statistics may take memory for: `generic` */
		return 0;
	if (r < 0)
		return r;
	ns->sample_blocks_max = fit > SAMPLE_BLOCKS_MAX ? SAMPLE_BLOCKS_MAX
				: fit			? (uint32_t)fit
							: 1;
	ns->sample = malloc(ns->sample_blocks_max * ns->geom.raw_bytes);
	if (!ns->sample) {
		ns->fit = codec_fit_free(ns->fit);
		return -ENOMEM;
	}
	return 0;
}

/* The statistics are a hundred times a profile's size: they go with the last fit. */
static void drop_statistics(struct namespace *ns)
{
	assert(!ns->fit_running && !ns->sample_copying);
	ns->fit = codec_fit_free(ns->fit);
	free(ns->sample);
	ns->sample = NULL;
}

void profiler_ns_deinit(struct namespace *ns)
{
	drop_statistics(ns);
	for (uint32_t i = 0; i < ns->profiles_count; i++)
		ns->profile[i] = codec_profile_free(ns->profile[i]);
	ns->profiles_count = 0;
}

/* Tokens at which the next profile is due; 0: no more. */
static uint64_t due_tokens(const struct lane *lane, const struct namespace *ns)
{
	return ns->fit_next < CONFIG_FITS_MAX ? lane->config.fit_tokens[ns->fit_next] : 0;
}

static uint64_t sampled_tokens(const struct namespace *ns)
{
	return ns->fitted_tokens + (uint64_t)ns->sample_blocks * ns->geom.block_tokens;
}

static int sample_complete(const struct lane *lane, const struct namespace *ns)
{
	return ns->sample_blocks == ns->sample_blocks_max ||
	       sampled_tokens(ns) >= due_tokens(lane, ns);
}

int profiler_wants(struct lane *lane, struct namespace *ns)
{
	return ns->sample && !ns->fit_running && due_tokens(lane, ns) &&
	       ns->profiles_count < NS_PROFILES_MAX && !sample_complete(lane, ns);
}

/* Where the next sample block goes; profiler_sampled() follows, once. */
uint8_t *profiler_reserve(struct namespace *ns)
{
	assert(ns->sample_blocks < ns->sample_blocks_max);
	ns->sample_copying++;
	return ns->sample + (uint64_t)ns->sample_blocks++ * ns->geom.raw_bytes;
}

void profiler_sampled(struct lane *lane, struct namespace *ns, int ok)
{
	(void)lane;
	assert(ns->sample_copying > 0);
	ns->sample_copying--;
	if (!ok)
		ns->sample_failed = 1; /* a hole in the buffer: start this sample again */
}

int profiler_parks(const struct lane *lane, const struct namespace *ns)
{
	return ns->profiles_count == 0 && ns->sample && ns->fit_running &&
	       lane->now_ns - ns->fit_wanted_ns < PROFILER_PARK_NS;
}

static void start_fit(struct lane *lane, struct namespace *ns)
{
	struct task *t = &lane->fit_task;

	t->kind = TASK_FIT;
	t->ns = ns;
	t->dev = (struct device_task){
		.op = DEVICE_FIT,
		.geom = &ns->geom,
		.in = ns->sample,
		.in_bytes = ns->sample_blocks * ns->geom.raw_bytes,
		.samples_count = ns->sample_blocks,
		.fit = ns->fit,
		.fit_finish = sampled_tokens(ns) >= due_tokens(lane, ns),
	};
	if (task_start(lane, t, lane->device) < 0)
		return; /* tried again in the next turn */
	lane->fit_busy = 1;
}

void profiler_run(struct lane *lane)
{
	for (uint32_t i = 0; i < lane->ns_end; i++) {
		struct namespace *ns = lane->ns[i];

		if (!ns || !ns->sample || ns->sample_copying || !ns->sample_blocks ||
		    !due_tokens(lane, ns))
			continue;
		if (ns->sample_failed) {
			ns->sample_failed = 0;
			ns->sample_blocks = 0;
			continue;
		}
		if (!ns->fit_running && sample_complete(lane, ns)) {
			ns->fit_running = 1; /* its turn comes when the background thread is free */
			ns->fit_wanted_ns = lane->now_ns;
		}
		if (ns->fit_running && !lane->fit_busy)
			start_fit(lane, ns);
	}
}

void profiler_fit_done(struct lane *lane, struct task *t)
{
	struct namespace *ns = t->ns;

	lane->fit_busy = 0;
	ns->fit_running = 0;
	ns->fitted_tokens += (uint64_t)ns->sample_blocks * ns->geom.block_tokens;
	ns->sample_blocks = 0;
	if (!t->dev.fit_finish)
		return;
	ns->fit_next++;
	if (!due_tokens(lane, ns))
		drop_statistics(ns);
	if (t->dev.res < 0)
		return; /* the older profile, or `generic`, goes on */
	ns->profile[ns->profiles_count++] = t->dev.ret_profile;
	atomic_store_explicit(&ns->profile_version, ns->profiles_count, memory_order_relaxed);
	atomic_store_explicit(
		&ns->profile_bits_milli,
		(uint64_t)lround(1000 * codec_profile_expected_bits(t->dev.ret_profile)),
		memory_order_relaxed);
	stats_add(&lane->stats, STAT_PROFILES_FITTED, 1);
	(void)mailbox_send(&lane->outbox, &(struct mail){ .type = LANE_PROFILE_NEW,
							  .subject = ns,
							  .value = ns->profiles_count });
}
