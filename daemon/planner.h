/* SPDX-License-Identifier: Apache-2.0 */
/*
 * planner.h - what a byte costs on this machine, and which speculator follows from that.  Numbers in, numbers
 * out: no I/O, no clock, no allocation.  Lane-only; what control shows is a copy.
 *
 * Rates are measured: a little at the start, then by every task and every read.  What was never measured has an
 * assumed rate, and is said to be assumed.
 *
 * The expected time to bring a block back, were all blocks coded one way:
 *
 *	E = host_share * host_ns + nvme_share * nvme_ns + rest * gone_ns
 *
 * A share is how much of what is wanted fits the tier at that size; wanted are the blocks that are here, that were
 * dropped for room lately, and that will come if the next minutes are as the last.  Each is taken to be as likely
 * to be asked for as any other.  Compressing harder makes the shares larger and host_ns slower: with room for
 * everything the quickest decoder wins, with little room the smallest blocks.
 */
#ifndef SKVCD_DAEMON_PLANNER_H
#define SKVCD_DAEMON_PLANNER_H

#include <stdbool.h>
#include <stdint.h>

#include "gpu/codec/codec.h"

enum plan_device { PLAN_CPU, PLAN_GPU, PLAN_DEVICES };
enum plan_op { PLAN_ENCODE, PLAN_DECODE, PLAN_OPS };

#define PLAN_GONE_FACTOR 8 /* computing again, in the slowest restores: when no engine said */
#define PLAN_TRIES 8u	   /* samples after which a rate is believed */
#define PLAN_HORIZON_NS 600000000000ull /* what was stored and dropped within it still counts */
#define PLAN_BURST_NS 5000000000ull	/* and what says how busy stores keep the device now */

struct plan_rate {
	double ns_per_byte;
	uint64_t samples; /* 0: assumed */
};

struct plan_machine {
	struct plan_rate copy;			/* raw bytes in host memory, by one thread */
	struct plan_rate link;			/* between host memory and the GPU */
	struct plan_rate nvme_read, nvme_write; /* of records, all that are in flight together */
	/* of raw bytes: by one worker of the CPU device, by the GPU as a whole */
	struct plan_rate code[PLAN_DEVICES][PLAN_OPS][CODEC_SPEC_COUNT];
	uint32_t workers[PLAN_DEVICES];
};

/* Decaying sums. */
struct plan_demand {
	double stored_bytes, burst_bytes, dropped_bytes; /* raw */
	uint64_t at_ns;
};

/* Of transfers that overlap, the rate of them together: from the first to when none is left. */
struct plan_meter {
	uint64_t begin_ns, bytes;
};

struct plan_room {
	uint64_t host_bytes, nvme_bytes; /* of the tiers; 0: none */
	double wanted_bytes;		 /* raw */
};

/* The blocks of a namespace. */
struct plan_blocks {
	enum plan_device device; /* that decodes them */
	uint64_t raw_bytes;	 /* of one */
	uint32_t tokens;
	uint64_t prefill_tokens_per_s;	/* of its engine; 0: not said */
	double ratio[CODEC_SPEC_COUNT]; /* coded / raw bytes; 0: cannot be had */
};

/* Of one way to code them. */
struct plan_weight {
	double host_share, nvme_share;
	double host_ns, nvme_ns, gone_ns; /* to bring one block back from there */
	double expected_ns;
	bool assumed; /* the rate of its decoder is */
};

void planner_init(struct plan_machine *m, uint32_t cpu_workers);
/* Copy, and what codes without a profile, on made-up data: some 20 ms.  -ENOMEM: the assumed rates stay. */
int planner_probe(struct plan_machine *m);

void plan_rate_seen(struct plan_rate *r, uint64_t bytes, uint64_t ns);
/* Inflight: without this one.  bytes: 0: it failed. */
void plan_meter_begin(struct plan_meter *meter, uint64_t now_ns, unsigned inflight_before);
void plan_meter_end(struct plan_meter *meter, struct plan_rate *r, uint64_t now_ns, uint64_t bytes,
		    unsigned inflight_after);

void plan_demand_stored(struct plan_demand *d, uint64_t now_ns, uint64_t raw_bytes);
void plan_demand_dropped(struct plan_demand *d, uint64_t now_ns, uint64_t raw_bytes);
/* held_bytes: raw bytes of all that is here. */
double plan_demand_wanted(struct plan_demand *d, uint64_t now_ns, uint64_t held_bytes);
/* Of all its time the device would code what is being stored, with `speculator`. */
double plan_demand_busy(struct plan_demand *d, const struct plan_machine *m,
			enum plan_device device, uint8_t speculator, uint64_t now_ns);

/* ns to decode a block, whose record is in host memory or on NVMe. */
double plan_host_ns(const struct plan_machine *m, const struct plan_blocks *b, uint8_t speculator,
		    double coded_bytes);
double plan_nvme_ns(const struct plan_machine *m, const struct plan_blocks *b, uint8_t speculator,
		    double coded_bytes);
/* ns to compute one again: 0 when the engine has not said how fast it is. */
double plan_prefill_ns(const struct plan_blocks *b);

/* How long it takes to bring a block back from NVMe, as decisions take it: as from memory until one was read. */
double plan_back_ns(const struct plan_machine *m, const struct plan_blocks *b, uint8_t speculator,
		    double coded_bytes);
/*
 * Of a block that leaves memory: is it not worth a place on NVMe, for its engine computes it sooner than it would come
 * back?  before: the last answer, which stands while both take about as long.
 */
bool plan_drops(const struct plan_machine *m, const struct plan_blocks *b, uint8_t speculator,
		bool before);

/*
 * Of a block on NVMe that is asked for: is it read?  Then it stays in memory, and goes first when the policy
 * finds it worth least: a filter before that made memory hits fewer (`skvc-bench replay`).
 */
bool plan_promotes(const struct plan_machine *m, const struct plan_blocks *b, uint8_t speculator);

/* false: it cannot be had. */
bool plan_weigh(const struct plan_machine *m, const struct plan_room *room,
		const struct plan_blocks *b, uint8_t speculator, struct plan_weight *ret);
/*
 * The way with the least E among `ways` (bits).  One that is not measured yet is the answer, so that it will
 * be; else `current` stays unless another is better by a twentieth.  CODEC_SPEC_RAW when none can be had.
 */
uint8_t plan_best(const struct plan_machine *m, const struct plan_room *room,
		  const struct plan_blocks *b, unsigned ways, uint8_t current);

#endif
