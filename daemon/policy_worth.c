/* SPDX-License-Identifier: Apache-2.0 */
/*
 * policy_worth.c - one key in 2^shift is watched for a while, whether its block is in the cache or not: so what is
 * learned does not depend on what was evicted.  For each class and bin of age it is counted how long keys were watched
 * in it, and how many uses ended that: their ratio is the rate of uses.  A key that has to make room for
 * another is counted as far as it was watched.
 */
#include "daemon/policy_worth.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#define WAYS 8u
#define TAG_THERE (1u << 31) /* in every tag */
#define SHIFT_MAX 20u
#define WATCHED_MAX (1u << 16) /* keys, for caches of up to 8 times that; then an eighth */
#define WATCH_TIMES 8u	       /* as many keys' fates as the cache has blocks: their age */
#define FIRST_LEARN 1024u      /* uses before the first rates, then twice that, ... */
#define MEMORY_TIMES 64.0      /* uses per block of the cache after which 1/e of a count is left */
#define PRIOR_USES 100.0       /* uses that a class must show to be half believed */
#define PRIOR_USES_MIN 30.0    /* the same, when few keys are watched */
#define PRIOR_RATE_TIMES_AGE 0.1 /* of a key of any class, at first */
#define RATIO_KEPT 0.95		 /* of a class to all, from one bin to the next, as exponent */

struct watched {
	uint32_t tag;	/* of its hash, class in the low bits; 0: none */
	uint32_t since; /* its last use */
};

struct worth {
	struct watched *watched; /* owned, sets of WAYS */
	uint32_t watched_count;	 /* a power of two */
	uint32_t shift;
	uint32_t learned_at, learn_every;
	double forget_uses, prior_uses;
	double uses[WORTH_CLASSES][WORTH_BINS];
	double time[WORTH_CLASSES][WORTH_BINS];
	float worth[WORTH_CLASSES][WORTH_BINS];
	float chance[WORTH_CLASSES][WORTH_BINS]; /* to be used before the bin ends */
};

static uint32_t bin_of(uint32_t age)
{
	uint32_t log, bin;

	if (age < 2)
		return 0;
	log = 31u - (uint32_t)__builtin_clz(age);
	bin = 2 * log - 1 + (age >> (log - 1) & 1);
	return bin < WORTH_BINS ? bin : WORTH_BINS - 1;
}

/* Where a bin begins; the last one is said to end where a next one would begin. */
static double edge_of(uint32_t bin)
{
	if (!bin)
		return 0;
	return (double)(1ull << ((bin + 1) / 2)) * (bin & 1 ? 1 : 1.5);
}

/* Before anything is known: the older the less, and what was used again is worth more. */
static void guess(struct worth *w)
{
	for (uint32_t c = 0; c < WORTH_CLASSES; c++)
		for (uint32_t b = 0; b < WORTH_BINS; b++) {
			w->worth[c][b] = (float)(PRIOR_RATE_TIMES_AGE / (1 + edge_of(b)));
			w->chance[c][b] = 1;
		}
}

int worth_new(uint32_t blocks_max, struct worth **ret_worth)
{
	struct worth *w = calloc(1, sizeof(*w));
	uint64_t wanted = (uint64_t)WATCH_TIMES * blocks_max;

	if (!w)
		return -ENOMEM;
	w->watched_count = 256;
	while (w->watched_count < wanted &&
	       (w->watched_count < WATCHED_MAX || w->watched_count < blocks_max / 8))
		w->watched_count *= 2;
	w->watched = calloc(w->watched_count, sizeof(*w->watched));
	if (!w->watched)
		return worth_free(w), -ENOMEM;
	w->learn_every = FIRST_LEARN;
	worth_set_blocks(w, 0);
	guess(w);
	*ret_worth = w;
	return 0;
}

static bool is_sampled(const struct worth *w, uint32_t tag)
{
	return !(tag / WORTH_CLASSES & ((1u << w->shift) - 1));
}

void worth_set_blocks(struct worth *w, uint32_t blocks)
{
	uint64_t wanted = (uint64_t)WATCH_TIMES * blocks;
	uint32_t shift = w->shift;

	while (shift < SHIFT_MAX && (uint64_t)w->watched_count << shift < wanted)
		shift++;
	while (shift > 0 && (uint64_t)w->watched_count << shift >= 4 * wanted)
		shift--;
	w->forget_uses = MEMORY_TIMES * ((double)blocks + 1);
	w->prior_uses = fmax(PRIOR_USES_MIN, PRIOR_USES / (double)(1u << shift));
	if (shift <= w->shift) {
		w->shift = shift;
		return;
	}
	w->shift = shift;
	for (uint32_t i = 0; i < w->watched_count; i++)
		if (!is_sampled(w, w->watched[i].tag))
			w->watched[i].tag = 0; /* its uses would not be seen any more */
}

struct worth *worth_free(struct worth *w)
{
	if (!w)
		return NULL;
	free(w->watched);
	free(w);
	return NULL;
}

uint64_t worth_bytes(const struct worth *w)
{
	return sizeof(*w) + (uint64_t)w->watched_count * sizeof(*w->watched);
}

float worth_of(const struct worth *w, uint32_t class, uint32_t age)
{
	assert(class < WORTH_CLASSES);
	return w->worth[class][bin_of(age)];
}

float worth_chance(const struct worth *w, uint32_t class, uint32_t age)
{
	assert(class < WORTH_CLASSES);
	return w->chance[class][bin_of(age)];
}

/* Watched at ages since rates were learned, or since its last use, to now. */
static void add_time(struct worth *w, const struct watched *k, uint32_t now)
{
	uint32_t age = now - k->since, seen = now - w->learned_at;
	double at = seen < age ? age - seen : 0, to = age;
	double *time = w->time[k->tag % WORTH_CLASSES];

	for (uint32_t b = bin_of((uint32_t)at); at < to; b++) {
		double end = b + 1 < WORTH_BINS ? fmin(to, edge_of(b + 1)) : to;

		time[b] += end - at;
		at = end;
	}
}

/* ---- rates and worths ---- */

/* From the youngest on: where little was seen, the rate goes on falling with the age as it did. */
static void rates_of_all(const struct worth *w, double rate[WORTH_BINS])
{
	double falling = PRIOR_RATE_TIMES_AGE;

	for (uint32_t b = 0; b < WORTH_BINS; b++) {
		double uses = 0, time = 0, age = b ? edge_of(b) * 1.25 : 1;

		for (uint32_t c = 0; c < WORTH_CLASSES; c++) {
			uses += w->uses[c][b];
			time += w->time[c][b];
		}
		falling = (uses + w->prior_uses * falling) / (time / age + w->prior_uses);
		falling = fmax(falling, 1e-3);
		rate[b] = falling / age;
	}
}

/*
 * Of all times to wait for the next use, the one with the best ratio of uses to time: so a class whose uses
 * come late is not worthless before.  A rate holds within its bin.
 */
static void worths_of_class(struct worth *w, uint32_t class, const double all[WORTH_BINS])
{
	double left[WORTH_BINS], time[WORTH_BINS], ratio = 1;

	for (uint32_t b = 0; b < WORTH_BINS; b++) {
		double width = edge_of(b + 1) - edge_of(b), rate;

		ratio = pow(ratio, RATIO_KEPT);
		ratio = (w->uses[class][b] + w->prior_uses * ratio) /
			(w->time[class][b] * all[b] + w->prior_uses);
		rate = fmax(ratio * all[b], 1e-18);
		left[b] = exp(-rate * width);
		time[b] = (1 - left[b]) / rate;
	}
	for (uint32_t from = 0; from < WORTH_BINS; from++) {
		double alive = 1, waited = 0, best = 0;

		for (uint32_t b = from; b < WORTH_BINS; b++) {
			waited += alive * time[b];
			alive *= left[b];
			best = fmax(best, (1 - alive) / waited);
			if (!from)
				w->chance[class][b] = (float)(1 - alive);
		}
		w->worth[class][from] = (float)best;
	}
}

static void learn(struct worth *w, uint32_t now)
{
	double keep = exp(-(double)(now - w->learned_at) / w->forget_uses), all[WORTH_BINS];

	for (uint32_t i = 0; i < w->watched_count; i++)
		if (w->watched[i].tag)
			add_time(w, &w->watched[i], now);
	rates_of_all(w, all);
	for (uint32_t c = 0; c < WORTH_CLASSES; c++)
		worths_of_class(w, c, all);
	for (uint32_t c = 0; c < WORTH_CLASSES; c++)
		for (uint32_t b = 0; b < WORTH_BINS; b++) {
			w->uses[c][b] *= keep;
			w->time[c][b] *= keep;
		}
	w->learned_at = now;
	if (w->learn_every < w->watched_count / 4)
		w->learn_every *= 2;
}

void worth_use(struct worth *w, uint64_t hash, uint32_t class, uint32_t now)
{
	uint32_t tag = (uint32_t)(hash >> 32) & ~(WORTH_CLASSES - 1) & ~TAG_THERE;
	struct watched *set, *k = NULL;

	assert(class < WORTH_CLASSES);
	if (now - w->learned_at >= w->learn_every)
		learn(w, now);
	if (!is_sampled(w, tag))
		return;
	tag |= TAG_THERE;
	set = &w->watched[(uint32_t)hash & (w->watched_count - 1) & ~(WAYS - 1)];
	for (uint32_t i = 0; i < WAYS; i++) {
		if ((set[i].tag & ~(WORTH_CLASSES - 1)) == tag) {
			k = &set[i];
			break;
		}
		if (!k || !set[i].tag || (k->tag && now - set[i].since > now - k->since))
			k = &set[i];
	}
	if (k->tag) {
		add_time(w, k, now);
		if ((k->tag & ~(WORTH_CLASSES - 1)) == tag)
			w->uses[k->tag % WORTH_CLASSES][bin_of(now - k->since)] += 1;
	}
	k->tag = tag | class;
	k->since = now;
}
