/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stats.c - names of the counters, and the histograms: four buckets an octave, so a percentile is right
 * to about 10 %.  record: the single writer of that struct stats; percentile, samples: anybody.
 */
#include "daemon/stats.h"

#include <assert.h>

const struct stats_info stats_info[STAT_COUNT] = {
#define STATS_INFO(kind_, id, name_, unit_, text_) \
	[STAT_##id] = { .name = (name_), .unit = (unit_), .text = (text_), .kind = #kind_[0] },
	STATS_TABLE(STATS_INFO)
#undef STATS_INFO
};

const char *const stats_hist_name[STATS_HIST_COUNT] = {
#define STATS_HIST_NAME(id, name, text) [STATS_HIST_##id] = (name),
	STATS_HIST_TABLE(STATS_HIST_NAME)
#undef STATS_HIST_NAME
};

const char *const stats_hist_text[STATS_HIST_COUNT] = {
#define STATS_HIST_TEXT(id, name, text) [STATS_HIST_##id] = (text),
	STATS_HIST_TABLE(STATS_HIST_TEXT)
#undef STATS_HIST_TEXT
};

static const char *const reason_words[SKVC_ABI_REASON_COUNT] = {
#define STATS_REASON(name, word, text) [SKVC_ABI_REASON_##name] = (word),
	SKVC_ABI_REASONS(STATS_REASON)
#undef STATS_REASON
};

static const char *const reason_texts[SKVC_ABI_REASON_COUNT] = {
#define STATS_REASON_TEXT(name, word, text) [SKVC_ABI_REASON_##name] = (text),
	SKVC_ABI_REASONS(STATS_REASON_TEXT)
#undef STATS_REASON_TEXT
};

const char *stats_reason_text(uint16_t reason)
{
	return reason < SKVC_ABI_REASON_COUNT ? reason_texts[reason] : "unknown";
}

const char *stats_reason_word(uint16_t reason)
{
	return reason < SKVC_ABI_REASON_COUNT ? reason_words[reason] : "unknown";
}

static void bump(_Atomic uint64_t *word, uint64_t n)
{
	/* One writer: the load cannot be stale, and readers only need whole words. */
	atomic_store_explicit(word, atomic_load_explicit(word, memory_order_relaxed) + n,
			      memory_order_relaxed);
}

void stats_reason(struct stats *s, uint16_t reason)
{
	assert(reason < SKVC_ABI_REASON_COUNT);
	bump(&s->reason[reason], 1);
}

/* 1, 2, 3 ns have their octave's first buckets; everything above 2^40 ns lies in the last one. */
static unsigned bucket_of(uint64_t ns)
{
	unsigned octave, quarter, bucket;

	if (ns < 2)
		return 0;
	octave = 63u - (unsigned)__builtin_clzll(ns);
	quarter = (unsigned)((octave >= 2 ? ns >> (octave - 2) : ns << (2 - octave)) & 3);
	bucket = octave * 4 + quarter;
	return bucket < STATS_BUCKETS ? bucket : STATS_BUCKETS - 1;
}

/* The first ns of a bucket, as a fraction where an octave is narrower than four. */
static double bucket_floor_ns(unsigned bucket)
{
	return (double)(UINT64_C(1) << (bucket / 4)) * (1.0 + (double)(bucket % 4) / 4.0);
}

void stats_record_ns(struct stats *s, enum stats_hist_id hist, uint64_t ns)
{
	assert(hist < STATS_HIST_COUNT);
	bump(&s->hist[hist][bucket_of(ns)], 1);
	bump(&s->hist_sum_ns[hist], ns);
}

void stats_hist_copy(const struct stats *s, enum stats_hist_id hist,
		     uint64_t ret_count[STATS_BUCKETS])
{
	for (unsigned i = 0; i < STATS_BUCKETS; i++)
		ret_count[i] = atomic_load_explicit(&s->hist[hist][i], memory_order_relaxed);
}

uint64_t stats_hist_samples(const struct stats *s, enum stats_hist_id hist)
{
	uint64_t n = 0;

	for (unsigned i = 0; i < STATS_BUCKETS; i++)
		n += atomic_load_explicit(&s->hist[hist][i], memory_order_relaxed);
	return n;
}

uint64_t stats_percentile_ns(const struct stats *s, enum stats_hist_id hist, double p)
{
	uint64_t count[STATS_BUCKETS], total = 0, before = 0;
	double rank;

	/* A copy: the writer goes on meanwhile, and the walk must end inside what was summed. */
	stats_hist_copy(s, hist, count);
	for (unsigned i = 0; i < STATS_BUCKETS; i++)
		total += count[i];
	if (!total)
		return 0;
	rank = p < 0.0 ? 0.0 : p > 1.0 ? (double)total : p * (double)total;
	for (unsigned i = 0; i < STATS_BUCKETS; i++) {
		double floor_ns, next_ns;

		if (!count[i])
			continue;
		if ((double)(before + count[i]) < rank) {
			before += count[i];
			continue;
		}
		floor_ns = bucket_floor_ns(i);
		next_ns = i + 1 < STATS_BUCKETS ? bucket_floor_ns(i + 1) : floor_ns * 1.25;
		return (uint64_t)(floor_ns +
				  (next_ns - floor_ns) *
					  ((rank - (double)before) / (double)count[i]) +
				  0.5);
	}
	return (uint64_t)bucket_floor_ns(STATS_BUCKETS - 1); /* rounding of rank */
}
