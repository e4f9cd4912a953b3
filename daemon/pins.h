/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pins.h - how many bytes of blocks are pinned, without a list of them: each is counted at the place of the time when
 * its pin ends, and a place whose time is over counts no more.  So a pin is counted for up to 17 s longer than it is.
 *
 * All of it lies in the tenant: nothing is allocated.  Times are those of a block's `pinned`.  Lane only.
 */
#ifndef SKVCD_DAEMON_PINS_H
#define SKVCD_DAEMON_PINS_H

#include <assert.h>
#include <stdint.h>

#define PINS_UNIT_SHIFT 26u /* of nanoseconds: 67 ms */
#define PINS_PLACE_SHIFT 8u /* of units: 17 s */
#define PINS_PLACES 5120u   /* a bit more than 24 hours, the longest pin */

struct pins {
	uint64_t bytes; /* of all places */
	uint32_t
		first; /* the place that is not over: those up to first + PINS_PLACES are counted */
	uint64_t place[PINS_PLACES]; /* bytes; place p at p % PINS_PLACES */
};

/* Those places whose time is over at now count no more. */
static inline void pins_expire(struct pins *p, uint32_t now)
{
	uint32_t first = now >> PINS_PLACE_SHIFT;

	for (uint32_t n = 0; p->first + n < first && n < PINS_PLACES; n++) {
		uint64_t *place = &p->place[(p->first + n) % PINS_PLACES];

		p->bytes -= *place;
		*place = 0;
	}
	if (p->first < first)
		p->first = first;
}

/* until: not more than 24 hours behind the now of the last pins_expire(); what is over already is not counted. */
static inline void pins_add(struct pins *p, uint32_t until, uint64_t bytes)
{
	uint32_t at = until >> PINS_PLACE_SHIFT;

	if (at < p->first)
		return;
	assert(at - p->first < PINS_PLACES);
	p->place[at % PINS_PLACES] += bytes;
	p->bytes += bytes;
}

/* What was added with the same until and bytes. */
static inline void pins_sub(struct pins *p, uint32_t until, uint64_t bytes)
{
	uint32_t at = until >> PINS_PLACE_SHIFT;

	if (at < p->first)
		return;
	assert(at - p->first < PINS_PLACES && p->place[at % PINS_PLACES] >= bytes);
	p->place[at % PINS_PLACES] -= bytes;
	p->bytes -= bytes;
}

#endif
