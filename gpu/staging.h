/* SPDX-License-Identifier: Apache-2.0 */
/*
 * staging.h - who has which bytes of a device's staging memory.  Only arithmetic on addresses: it never
 * follows one.  The lane's; no allocation after init.
 */
#ifndef SKVCD_GPU_STAGING_H
#define SKVCD_GPU_STAGING_H

#include <stdbool.h>
#include <stdint.h>

#define STAGING_ALIGN 256u
#define STAGING_EXTENTS_MAX 64u

struct staging_extent {
	uint64_t off;
	uint64_t bytes;
	uint32_t refs; /* users; given back when the last one leaves */
};

/* Extents are kept in order of their offsets; taking is first fit. */
struct staging_area {
	uint64_t base; /* STAGING_ALIGN aligned, not 0 */
	uint64_t bytes;
	uint32_t extents_count;
	struct staging_extent extent[STAGING_EXTENTS_MAX];
};

/* How one allocation is cut: see staging.c. */
struct staging_cut {
	uint64_t loads_bytes;  /* payloads on their way in */
	uint64_t stores_bytes; /* payloads on their way out, until unstaged */
	uint64_t loads_scratch_bytes;
	uint64_t stores_scratch_bytes;
};

struct staging_cut staging_cut(uint64_t staging_bytes);
/* Raw bytes of the largest block that can be stored and loaded, coded or not. */
uint64_t staging_block_max(const struct staging_cut *cut);

void staging_init(struct staging_area *a, uint64_t base, uint64_t bytes);
/* The largest piece that staging_take would give now. */
uint64_t staging_room(const struct staging_area *a);
/* Its address, with one user, or 0: no room. */
uint64_t staging_take(struct staging_area *a, uint64_t bytes);
/* users more for the extent that holds the address. */
void staging_ref(struct staging_area *a, uint64_t address, uint32_t users);
/* One user less. */
void staging_unref(struct staging_area *a, uint64_t address);
static inline bool staging_idle(const struct staging_area *a)
{
	return a->extents_count == 0;
}

#endif
