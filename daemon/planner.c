/* SPDX-License-Identifier: Apache-2.0 */
/* planner.c - see planner.h. */
#include "daemon/planner.h"

#include <math.h>

#define RATE_WEIGHT 16.0	     /* samples that the mean reaches back, about */
#define METER_BYTES_MIN (256u << 10) /* less is the latency of one transfer, not a rate */
#define METER_NS_MAX 50000000ull
#define BETTER 0.95
#define DROPS_BETTER 0.9 /* for what is not undone: a block that was dropped is gone */

/* GB/s of raw bytes on one core of a server of 2024, and on an H100: README's tables. */
static const double assumed_gbs[PLAN_DEVICES][PLAN_OPS][CODEC_SPEC_COUNT] = {
	[PLAN_CPU] = { [PLAN_ENCODE] = { 5, 0.3, 0.9, 0.1, 0.01 },
		       [PLAN_DECODE] = { 8, 0.8, 1.0, 0.15, 0.01 } },
	[PLAN_GPU] = { [PLAN_ENCODE] = { 500, 0.3, 400, 70, 5 },
		       [PLAN_DECODE] = { 500, 0.8, 600, 100, 5 } },
};

static struct plan_rate assume(double gb_per_s)
{
	return (struct plan_rate){ .ns_per_byte = 1 / gb_per_s };
}

void planner_init(struct plan_machine *m, uint32_t cpu_workers)
{
	*m = (struct plan_machine){
		.copy = assume(5),
		.link = assume(50),
		.nvme_read = assume(2),
		.nvme_write = assume(1),
		.workers = { [PLAN_CPU] = cpu_workers ? cpu_workers : 1, [PLAN_GPU] = 1 },
	};
	for (unsigned d = 0; d < PLAN_DEVICES; d++)
		for (unsigned o = 0; o < PLAN_OPS; o++)
			for (unsigned s = 0; s < CODEC_SPEC_COUNT; s++)
				m->code[d][o][s] = assume(assumed_gbs[d][o][s]);
}

/* The first sample replaces what was assumed; later ones are a moving mean. */
void plan_rate_seen(struct plan_rate *r, uint64_t bytes, uint64_t ns)
{
	double weight;

	if (!bytes || !ns)
		return;
	r->samples++;
	weight = 1 / fmin((double)r->samples, RATE_WEIGHT);
	r->ns_per_byte += ((double)ns / (double)bytes - r->ns_per_byte) * weight;
}

void plan_meter_begin(struct plan_meter *meter, uint64_t now_ns, unsigned inflight_before)
{
	if (!inflight_before)
		*meter = (struct plan_meter){ .begin_ns = now_ns };
}

void plan_meter_end(struct plan_meter *meter, struct plan_rate *r, uint64_t now_ns, uint64_t bytes,
		    unsigned inflight_after)
{
	uint64_t ns = now_ns - meter->begin_ns;

	meter->bytes += bytes;
	if (inflight_after && ns < METER_NS_MAX)
		return;
	if (meter->bytes >= METER_BYTES_MIN)
		plan_rate_seen(r, meter->bytes, ns);
	*meter = (struct plan_meter){ .begin_ns = now_ns };
}

/* ---- demand ---- */

static void decay(struct plan_demand *d, uint64_t now_ns)
{
	double ns = now_ns > d->at_ns ? (double)(now_ns - d->at_ns) : 0;

	d->at_ns = now_ns;
	d->stored_bytes *= exp(-ns / (double)PLAN_HORIZON_NS);
	d->dropped_bytes *= exp(-ns / (double)PLAN_HORIZON_NS);
	d->burst_bytes *= exp(-ns / (double)PLAN_BURST_NS);
}

void plan_demand_stored(struct plan_demand *d, uint64_t now_ns, uint64_t raw_bytes)
{
	decay(d, now_ns);
	d->stored_bytes += (double)raw_bytes;
	d->burst_bytes += (double)raw_bytes;
}

void plan_demand_dropped(struct plan_demand *d, uint64_t now_ns, uint64_t raw_bytes)
{
	decay(d, now_ns);
	d->dropped_bytes += (double)raw_bytes;
}

double plan_demand_wanted(struct plan_demand *d, uint64_t now_ns, uint64_t held_bytes)
{
	decay(d, now_ns);
	return (double)held_bytes + d->dropped_bytes + d->stored_bytes;
}

double plan_demand_busy(struct plan_demand *d, const struct plan_machine *m,
			enum plan_device device, uint8_t speculator, uint64_t now_ns)
{
	decay(d, now_ns);
	return d->burst_bytes / (double)PLAN_BURST_NS *
	       m->code[device][PLAN_ENCODE][speculator].ns_per_byte / m->workers[device];
}

/* ---- what a way costs ---- */

double plan_host_ns(const struct plan_machine *m, const struct plan_blocks *b, uint8_t speculator,
		    double coded_bytes)
{
	double decode_ns = (double)b->raw_bytes *
			   m->code[b->device][PLAN_DECODE][speculator].ns_per_byte /
			   m->workers[b->device];

	/* Blocks follow each other, so moving one overlaps with decoding another. */
	return b->device == PLAN_GPU ? fmax(decode_ns, coded_bytes * m->link.ns_per_byte)
				     : decode_ns;
}

double plan_nvme_ns(const struct plan_machine *m, const struct plan_blocks *b, uint8_t speculator,
		    double coded_bytes)
{
	return fmax(plan_host_ns(m, b, speculator, coded_bytes),
		    coded_bytes * m->nvme_read.ns_per_byte);
}

double plan_prefill_ns(const struct plan_blocks *b)
{
	return b->prefill_tokens_per_s ? (double)b->tokens * 1e9 / (double)b->prefill_tokens_per_s
				       : 0;
}

/* As long as nothing was read, NVMe is as fast as can be: else nothing might ever be written, and then read. */
double plan_back_ns(const struct plan_machine *m, const struct plan_blocks *b, uint8_t speculator,
		    double coded_bytes)
{
	return m->nvme_read.samples ? plan_nvme_ns(m, b, speculator, coded_bytes)
				    : plan_host_ns(m, b, speculator, coded_bytes);
}

static double usual_back_ns(const struct plan_machine *m, const struct plan_blocks *b,
			    uint8_t speculator)
{
	return plan_back_ns(m, b, speculator, b->ratio[speculator] * (double)b->raw_bytes);
}

bool plan_drops(const struct plan_machine *m, const struct plan_blocks *b, uint8_t speculator,
		bool before)
{
	double prefill_ns = plan_prefill_ns(b), nvme_ns = usual_back_ns(m, b, speculator);

	if (!(prefill_ns > 0) || !(b->ratio[speculator] > 0))
		return false;
	return before ? prefill_ns < nvme_ns / DROPS_BETTER : prefill_ns < nvme_ns * DROPS_BETTER;
}

bool plan_promotes(const struct plan_machine *m, const struct plan_blocks *b, uint8_t speculator)
{
	double prefill_ns = plan_prefill_ns(b);

	return !(prefill_ns > 0) || prefill_ns > usual_back_ns(m, b, speculator);
}

/* The same for all ways: else a slow decoder would make a miss look dear. */
static double gone_ns(const struct plan_machine *m, const struct plan_blocks *b)
{
	double slowest = 0;

	if (b->prefill_tokens_per_s)
		return plan_prefill_ns(b);
	for (unsigned s = 0; s < CODEC_SPEC_COUNT; s++)
		if (b->ratio[s] > 0)
			slowest = fmax(slowest, plan_nvme_ns(m, b, (uint8_t)s,
							     b->ratio[s] * (double)b->raw_bytes));
	return PLAN_GONE_FACTOR * slowest;
}

static double share(uint64_t room_bytes, double wanted_bytes)
{
	return wanted_bytes > 0 ? fmin(1, (double)room_bytes / wanted_bytes) : 1;
}

bool plan_weigh(const struct plan_machine *m, const struct plan_room *room,
		const struct plan_blocks *b, uint8_t speculator, struct plan_weight *ret)
{
	double ratio = b->ratio[speculator], coded = ratio * (double)b->raw_bytes;
	double wanted = room->wanted_bytes * ratio;

	*ret = (struct plan_weight){ 0 };
	if (!(ratio > 0))
		return false;
	ret->assumed = !m->code[b->device][PLAN_DECODE][speculator].samples;
	ret->host_share = share(room->host_bytes, wanted);
	/* NVMe has what host memory has as well. */
	if (room->nvme_bytes)
		ret->nvme_share = fmax(0, share(room->nvme_bytes, wanted) - ret->host_share);
	ret->host_ns = plan_host_ns(m, b, speculator, coded);
	ret->nvme_ns = plan_nvme_ns(m, b, speculator, coded);
	ret->gone_ns = gone_ns(m, b);
	ret->expected_ns = ret->host_share * ret->host_ns + ret->nvme_share * ret->nvme_ns +
			   (1 - ret->host_share - ret->nvme_share) * ret->gone_ns;
	return true;
}

static bool untried(const struct plan_machine *m, const struct plan_blocks *b, uint8_t speculator)
{
	return m->code[b->device][PLAN_DECODE][speculator].samples < PLAN_TRIES;
}

uint8_t plan_best(const struct plan_machine *m, const struct plan_room *room,
		  const struct plan_blocks *b, unsigned ways, uint8_t current)
{
	double best_ns = INFINITY;
	uint8_t best = CODEC_SPEC_RAW;
	struct plan_weight w;

	if (plan_weigh(m, room, b, current, &w)) {
		best = current;
		best_ns = w.expected_ns * BETTER;
	}
	for (unsigned s = 0; s < CODEC_SPEC_COUNT; s++) {
		if (!(ways >> s & 1) || s == current || !plan_weigh(m, room, b, (uint8_t)s, &w))
			continue;
		if (untried(m, b, (uint8_t)s))
			return (uint8_t)s;
		if (w.expected_ns < best_ns) {
			best = (uint8_t)s;
			best_ns = w.expected_ns;
		}
	}
	return best;
}
