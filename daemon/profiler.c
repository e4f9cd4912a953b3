/* SPDX-License-Identifier: Apache-2.0 */
/*
 * profiler.c - how a namespace gets its profiles: the first blocks stored are also copied raw into a sample, a
 * background task adds them to the namespace's statistics, and at set numbers of tokens these are frozen as
 * a profile.  Where maps from layer to layer are wanted, the blocks whose place in their sequence is known stay
 * in the sample, and from the second freeze on another background thread fits the maps on them, for minutes.
 * New blocks use the newest profile; old blocks keep theirs (profiles.c).
 *
 * Until the first profile is frozen, stores of the namespace wait for a fit that is running, a quarter of a
 * second at most, rather than being stored badly.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "daemon/lane_state.h"

#define SAMPLE_BYTES_MAX (32ull << 20) /* of a namespace that keeps none */
#define SAMPLE_BLOCKS_MAX 64u
#define SAMPLE_KEPT_MIN 8u /* blocks: with less room no maps are tried */
#define PREVIOUS_AUTO 2
/* A fit of the first sample takes 20..60 ms of a core; on a busy machine, at its low priority, much longer. */
#define PROFILER_PARK_NS 250000000ull

void profiler_note(struct lane *lane, struct namespace *ns, enum profile_note note, int32_t res)
{
	(void)mailbox_send(&lane->outbox, &(struct mail){ .type = LANE_PROFILE_NOTE,
							  .subject = ns,
							  .value = note,
							  .res = res });
}

static void set_state(struct namespace *ns, enum ns_fit to)
{
	static const uint8_t legal[NS_FIT_COUNT][NS_FIT_COUNT] = {
		[NS_FIT_IDLE] = { [NS_FIT_SAMPLING] = 1 },
		[NS_FIT_SAMPLING] = { [NS_FIT_DUE] = 1 },
		[NS_FIT_DUE] = { [NS_FIT_FITTING] = 1 },
		[NS_FIT_FITTING] = { [NS_FIT_SAMPLING] = 1,
				     [NS_FIT_LAYER_DUE] = 1,
				     [NS_FIT_IDLE] = 1 },
		[NS_FIT_LAYER_DUE] = { [NS_FIT_LAYER] = 1 },
		[NS_FIT_LAYER] = { [NS_FIT_SAMPLING] = 1, [NS_FIT_IDLE] = 1 },
	};

	assert(legal[ns->fit_state][to]);
	ns->fit_state = (uint8_t)to;
	atomic_store_explicit(&ns->fit_shown, to, memory_order_relaxed);
}

/* ---- begin and end of a sample ---- */

static int wants_layer(const struct lane *lane)
{
	return lane->config.speculator >= CONFIG_SPECULATOR_LAYER;
}

/* How far back its maps may look within the bound on a profile's size. */
static uint8_t choose_previous(struct lane *lane, struct namespace *ns)
{
	uint32_t wish = lane->config.profile_previous, n;

	if (!wants_layer(lane))
		return NS_PREVIOUS_NONE;
	if (lane->config.profile_sample_bytes / ns->geom.raw_bytes < SAMPLE_KEPT_MIN ||
	    lane->config.profile_samples_bytes / ns->geom.raw_bytes < SAMPLE_KEPT_MIN) {
		profiler_note(lane, ns, PROFILE_NOTE_NO_SAMPLE, 0);
		return NS_PREVIOUS_NONE;
	}
	for (n = wish == CONFIG_PREVIOUS_AUTO ? PREVIOUS_AUTO : wish;; n--) {
		uint64_t bytes = codec_profile_layer_bytes(&ns->geom, n);

		if (bytes && bytes <= lane->config.profile_bytes_max)
			break;
		if (!n) {
			profiler_note(lane, ns, PROFILE_NOTE_NO_LAYER, 0);
			return NS_PREVIOUS_NONE;
		}
	}
	if (n != (wish == CONFIG_PREVIOUS_AUTO ? PREVIOUS_AUTO : wish))
		profiler_note(lane, ns, PROFILE_NOTE_PREVIOUS, (int32_t)n);
	return (uint8_t)n;
}

static uint64_t last_fit_tokens(const struct lane *lane)
{
	uint64_t tokens = 0;

	for (unsigned i = 0; i < CONFIG_FITS_MAX && lane->config.fit_tokens[i]; i++)
		tokens = lane->config.fit_tokens[i];
	return tokens;
}

/* Blocks that may be kept to fit maps on; 0: there is no room for enough of them. */
static uint32_t kept_blocks(const struct lane *lane, const struct namespace *ns)
{
	uint64_t room = lane->config.profile_samples_bytes - lane->sample_bytes, blocks, useful;

	if (ns->previous == NS_PREVIOUS_NONE ||
	    lane->sample_bytes >= lane->config.profile_samples_bytes)
		return 0;
	if (room > lane->config.profile_sample_bytes)
		room = lane->config.profile_sample_bytes;
	blocks = room / ns->geom.raw_bytes;
	useful = last_fit_tokens(lane) / ns->geom.block_tokens + 1;
	if (blocks > useful)
		blocks = useful;
	return blocks < SAMPLE_KEPT_MIN ? 0 : (uint32_t)blocks;
}

static uint32_t passing_blocks(const struct namespace *ns)
{
	uint64_t fit = SAMPLE_BYTES_MAX / ns->geom.raw_bytes;

	return fit > SAMPLE_BLOCKS_MAX ? SAMPLE_BLOCKS_MAX : fit ? (uint32_t)fit : 1;
}

/* The statistics are a hundred times a profile's size: they go with the last fit. */
static void sample_end(struct lane *lane, struct namespace *ns)
{
	assert(ns->fit_state == NS_FIT_IDLE && !ns->sample_copying);
	ns->fit = codec_fit_free(ns->fit);
	if (ns->sample)
		(void)munmap(ns->sample, ns->sample_bytes);
	lane->sample_bytes -= ns->sample_bytes;
	ns->sample = NULL;
	ns->sample_bytes = 0;
	free(ns->positions);
	ns->positions = NULL;
	ns->base = codec_profile_free(ns->base);
	atomic_store_explicit(&ns->sample_tokens, 0, memory_order_relaxed);
	stats_set(&lane->stats, STAT_SAMPLE_BYTES, lane->sample_bytes);
}

/* -ENOMEM; -E2BIG: more channels than statistics may take memory for. */
static int sample_begin(struct lane *lane, struct namespace *ns)
{
	uint32_t kept = kept_blocks(lane, ns);
	void *p;
	int r = codec_fit_new(&ns->geom, &ns->fit);

	if (r < 0)
		return r;
	ns->sample_blocks_max = kept ? kept : passing_blocks(ns);
	ns->sample_bytes = ns->sample_blocks_max * ns->geom.raw_bytes;
	lane->sample_bytes += ns->sample_bytes;
	p = mmap(NULL, ns->sample_bytes, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ns->sample = p == MAP_FAILED ? NULL : p;
	if (kept)
		ns->positions = calloc(kept, sizeof(*ns->positions));
	if (!ns->sample || (kept && !ns->positions)) {
		sample_end(lane, ns);
		return -ENOMEM;
	}
	ns->sample_blocks = ns->sample_fitted = 0;
	ns->fitted_tokens = 0;
	ns->sample_failed = 0;
	ns->sample_again = !kept && ns->previous != NS_PREVIOUS_NONE;
	/* Who has a profile waits for the better one. */
	ns->fit_next = ns->newest && lane->config.fit_tokens[1] ? 1 : 0;
	set_state(ns, NS_FIT_SAMPLING);
	stats_set(&lane->stats, STAT_SAMPLE_BYTES, lane->sample_bytes);
	return 0;
}

int profiler_ns_init(struct lane *lane, struct namespace *ns)
{
	int r;

	if (lane->config.speculator < CONFIG_SPECULATOR_CHANNEL)
		return 0;
	ns->previous = choose_previous(lane, ns);
	/* It was shipped, or found on NVMe: a sample is taken when it does not keep what it promises. */
	if (ns->newest)
		return 0;
	r = sample_begin(lane, ns);
	return r == -E2BIG ? 0 : r; /* then `generic` it is */
}

/* The lane has ended: no task looks at anything any more. */
void profiler_ns_deinit(struct lane *lane, struct namespace *ns)
{
	ns->fit_state = NS_FIT_IDLE;
	sample_end(lane, ns);
	profiles_ns_deinit(ns);
}

/* ---- taking a sample ---- */

/* Tokens at which the next profile is due; 0: no more. */
static uint64_t due_tokens(const struct lane *lane, const struct namespace *ns)
{
	return ns->fit_next < CONFIG_FITS_MAX ? lane->config.fit_tokens[ns->fit_next] : 0;
}

static uint64_t sampled_tokens(const struct namespace *ns)
{
	return ns->fitted_tokens +
	       (uint64_t)(ns->sample_blocks - ns->sample_fitted) * ns->geom.block_tokens;
}

static int sample_complete(const struct lane *lane, const struct namespace *ns)
{
	return ns->sample_blocks == ns->sample_blocks_max ||
	       sampled_tokens(ns) >= due_tokens(lane, ns);
}

int profiler_wants(struct lane *lane, struct namespace *ns)
{
	return ns->fit_state == NS_FIT_SAMPLING && !sample_complete(lane, ns);
}

/* Where the next sample block goes; profiler_sampled() follows, once. */
uint8_t *profiler_reserve(struct namespace *ns, uint32_t position)
{
	assert(ns->sample_blocks < ns->sample_blocks_max);
	ns->sample_copying++;
	if (ns->positions)
		ns->positions[ns->sample_blocks] = position;
	return ns->sample + (uint64_t)ns->sample_blocks++ * ns->geom.raw_bytes;
}

void profiler_sampled(struct lane *lane, struct namespace *ns, int ok)
{
	(void)lane;
	assert(ns->sample_copying > 0);
	ns->sample_copying--;
	if (!ok)
		ns->sample_failed =
			1; /* a hole: what is not in the statistics yet is taken again */
}

int profiler_parks(const struct lane *lane, const struct namespace *ns)
{
	return !ns->newest && (ns->fit_state == NS_FIT_DUE || ns->fit_state == NS_FIT_FITTING) &&
	       lane->now_ns - ns->fit_wanted_ns < PROFILER_PARK_NS;
}

/* ---- fits ---- */

/* The sample is full of blocks that stay: this is all there will ever be. */
static int sample_full(const struct namespace *ns)
{
	return ns->positions && ns->sample_fitted == ns->sample_blocks_max;
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
		.samples_first = ns->sample_fitted,
		.positions = ns->positions,
		.rival = ns->newest && !ns->positions ? ns->newest->p : NULL,
		.fit = ns->fit,
		.fit_finish = sampled_tokens(ns) >= due_tokens(lane, ns) || sample_full(ns),
	};
	if (task_start(lane, t, lane->device) < 0)
		return; /* tried again in the next turn */
	lane->fit_busy = 1;
	t->profile = profiles_use(ns->newest);
	set_state(ns, NS_FIT_FITTING);
}

static void start_layer(struct lane *lane, struct namespace *ns)
{
	struct task *t = &lane->layer_task;
	int last = !due_tokens(lane, ns) || sample_full(ns);

	t->kind = TASK_FIT_LAYER;
	t->ns = ns;
	t->dev = (struct device_task){
		.op = DEVICE_FIT_LAYER,
		.geom = &ns->geom,
		.in = ns->sample,
		.in_bytes = ns->sample_blocks * ns->geom.raw_bytes,
		.samples_count = ns->sample_blocks,
		.positions = ns->positions,
		.profile = ns->base ? ns->base : ns->newest->p,
		.rival = ns->newest && ns->newest->can_layer ? ns->newest->p : NULL,
		.previous = ns->previous,
		.discard = (uint8_t)last,
	};
	if (task_start(lane, t, lane->device) < 0)
		return;
	lane->layer_busy = 1;
	t->profile = profiles_use(ns->newest);
	set_state(ns, NS_FIT_LAYER);
}

static void run_ns(struct lane *lane, struct namespace *ns)
{
	profiles_take_shipped(lane, ns);
	switch (ns->fit_state) {
	case NS_FIT_IDLE:
		if (ns->opened && ns->sample_again &&
		    (kept_blocks(lane, ns) || ns->previous == NS_PREVIOUS_NONE)) {
			ns->sample_again = 0;
			(void)sample_begin(lane, ns);
		}
		break;
	case NS_FIT_SAMPLING:
		if (ns->sample_copying)
			break;
		if (ns->sample_failed) {
			ns->sample_failed = 0;
			ns->sample_blocks = ns->sample_fitted;
		} else if (sample_complete(lane, ns)) {
			set_state(ns, NS_FIT_DUE);
			ns->fit_wanted_ns = lane->now_ns;
		}
		break;
	case NS_FIT_DUE:
		if (!lane->fit_busy)
			start_fit(lane, ns);
		break;
	case NS_FIT_LAYER_DUE:
		if (!lane->layer_busy)
			start_layer(lane, ns);
		break;
	default:
		break;
	}
}

void profiler_run(struct lane *lane)
{
	if (lane->stopping) { /* nothing new, and minutes of work are not waited for */
		if (lane->layer_busy)
			atomic_store_explicit(&lane->layer_task.dev.cancel, 1,
					      memory_order_relaxed);
		return;
	}
	for (uint32_t i = 0; i < lane->ns_end; i++)
		if (lane->ns[i])
			run_ns(lane, lane->ns[i]);
}

/* ---- what came of them ---- */

static void go_on(struct lane *lane, struct namespace *ns)
{
	ns->base = codec_profile_free(ns->base);
	if (due_tokens(lane, ns) && !sample_full(ns)) {
		set_state(ns, NS_FIT_SAMPLING);
		return;
	}
	set_state(ns, NS_FIT_IDLE);
	sample_end(lane, ns);
}

/* Takes p over. */
static void install(struct lane *lane, struct namespace *ns, struct codec_profile *p,
		    uint64_t channel_milli, uint64_t layer_milli)
{
	if (profiles_room(ns) && !(ns->newest && ns->newest->can_model)) {
		profiles_install(lane, ns, p, ns->fitted_tokens, channel_milli, layer_milli);
		return;
	}
	codec_profile_free(p);
	profiler_note(lane, ns, profiles_room(ns) ? PROFILE_NOTE_NO_BETTER : PROFILE_NOTE_NO_SLOT,
		      0);
}

/* Maps are fitted on all but the first sample, which is too small for them, unless it is the only one. */
static int layer_is_due(const struct lane *lane, const struct namespace *ns)
{
	return ns->positions &&
	       (ns->fit_next > 1 || !lane->config.fit_tokens[1] || sample_full(ns));
}

static void no_better(struct lane *lane, struct namespace *ns)
{
	stats_add(&lane->stats, STAT_PROFILES_REJECTED, 1);
	profiler_note(lane, ns, PROFILE_NOTE_NO_BETTER, 0);
}

void profiler_fit_done(struct lane *lane, struct task *t)
{
	struct namespace *ns = t->ns;
	struct codec_profile *p = t->dev.ret_profile;
	uint64_t milli = profiles_milli(t->dev.bits_channel);
	int layer;

	lane->fit_busy = 0;
	profiles_drop(lane, t->profile);
	t->profile = NULL;
	ns->fitted_tokens = sampled_tokens(ns);
	ns->sample_blocks = ns->sample_fitted = ns->positions && t->dev.res == 0
							? t->dev.samples_kept
							: 0;
	atomic_store_explicit(&ns->sample_tokens,
			      (uint64_t)ns->sample_blocks * ns->geom.block_tokens,
			      memory_order_relaxed);
	if (!t->dev.fit_finish) {
		set_state(ns, NS_FIT_SAMPLING);
		return;
	}
	ns->fit_next++;
	if (t->dev.res < 0) { /* the older profile, or `generic`, goes on */
		profiler_note(lane, ns, PROFILE_NOTE_FAILED, t->dev.res);
		go_on(lane, ns);
		return;
	}
	if (!p) {
		no_better(lane, ns);
		go_on(lane, ns);
		return;
	}
	layer = layer_is_due(lane, ns);
	if (layer && ns->newest) { /* it comes into use with its maps, or when there are none */
		ns->base = p;
		ns->base_promised = milli;
	} else {
		install(lane, ns, p, milli, 0);
	}
	if (layer && (ns->base || ns->newest))
		set_state(ns, NS_FIT_LAYER_DUE);
	else
		go_on(lane, ns);
}

void profiler_layer_done(struct lane *lane, struct task *t)
{
	struct namespace *ns = t->ns;
	struct device_task *d = &t->dev;

	lane->layer_busy = 0;
	if (d->ret_profile) {
		install(lane, ns, d->ret_profile, profiles_milli(d->bits_channel),
			profiles_milli(d->bits_layer));
	} else {
		if (d->res == 0)
			no_better(lane, ns);
		else if (d->res != -ECANCELED)
			profiler_note(lane, ns, PROFILE_NOTE_FAILED, d->res);
		/* Fresh statistics are worth having, but not instead of maps that are better. */
		if (ns->base && d->res != -ECANCELED &&
		    (!ns->newest || !ns->newest->can_layer ||
		     (d->res == 0 && d->bits_channel < d->bits_rival))) {
			install(lane, ns, ns->base, ns->base_promised, 0);
			ns->base = NULL;
		}
	}
	profiles_drop(lane, t->profile);
	t->profile = NULL;
	go_on(lane, ns);
}
