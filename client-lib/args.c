/* SPDX-License-Identifier: Apache-2.0 */
/*
 * args.c - who holds which bytes of the argument area.  The map is private memory: what lies in the
 * shared area never decides where the next argument list goes.
 *
 * A sorted array of free extents, first fit.  Jobs end nearly in the order in which they began, so the
 * array is short; it has room for one extent more than there are jobs, which is all there can ever be.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "client-lib/client.h"

int client_args_init(struct client_args *a, uint32_t jobs_max)
{
	memset(a, 0, sizeof(*a));
	a->free_max = jobs_max + 1;
	a->free = calloc(a->free_max, sizeof(*a->free));
	return a->free ? 0 : -ENOMEM;
}

void client_args_deinit(struct client_args *a)
{
	free(a->free);
	memset(a, 0, sizeof(*a));
}

void client_args_reset(struct client_args *a, uint32_t total_bytes)
{
	a->total_bytes = total_bytes;
	a->free[0] = (struct client_extent){ .off = 0, .bytes = total_bytes };
	a->free_count = 1;
}

static uint32_t round_up(uint32_t bytes)
{
	return (bytes + CLIENT_ARGS_UNIT_BYTES - 1) & ~(CLIENT_ARGS_UNIT_BYTES - 1);
}

int client_args_alloc(struct client_args *a, uint32_t bytes, uint32_t *ret_off)
{
	uint32_t want = round_up(bytes);

	for (uint32_t i = 0; i < a->free_count; i++) {
		struct client_extent *e = &a->free[i];

		if (e->bytes < want)
			continue;
		*ret_off = e->off;
		e->off += want;
		e->bytes -= want;
		if (!e->bytes) {
			a->free_count--;
			memmove(e, e + 1, (a->free_count - i) * sizeof(*e));
		}
		return 0;
	}
	return -EAGAIN;
}

void client_args_free(struct client_args *a, uint32_t off, uint32_t bytes)
{
	uint32_t len = round_up(bytes);
	uint32_t i = 0;
	bool joins_before, joins_after;

	while (i < a->free_count && a->free[i].off < off)
		i++;
	joins_before = i > 0 && a->free[i - 1].off + a->free[i - 1].bytes == off;
	joins_after = i < a->free_count && off + len == a->free[i].off;
	if (joins_before && joins_after) {
		a->free[i - 1].bytes += len + a->free[i].bytes;
		a->free_count--;
		memmove(&a->free[i], &a->free[i + 1], (a->free_count - i) * sizeof(*a->free));
	} else if (joins_before) {
		a->free[i - 1].bytes += len;
	} else if (joins_after) {
		a->free[i].off = off;
		a->free[i].bytes += len;
	} else if (a->free_count < a->free_max) {
		memmove(&a->free[i + 1], &a->free[i], (a->free_count - i) * sizeof(*a->free));
		a->free[i] = (struct client_extent){ .off = off, .bytes = len };
		a->free_count++;
	}
}
