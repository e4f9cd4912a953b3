/* SPDX-License-Identifier: Apache-2.0 */
/*
 * quota.h - what a tenant may occupy, lease and pin.  Lane only.
 */
#ifndef SKVCD_DAEMON_QUOTA_H
#define SKVCD_DAEMON_QUOTA_H

#include <stdint.h>

struct block;
struct config;
struct lane;
struct tenant;

void quota_know(struct lane *lane, struct tenant *tenant);	       /* before it is charged */
void quota_configured(struct lane *lane, const struct config *config); /* quotas are others */
int quota_charge(const struct lane *lane, struct tenant *tenant, uint64_t bytes); /* 0, -EDQUOT */
void quota_uncharge(struct tenant *tenant, uint64_t bytes);

/* The first one holds the block, the last one lets it go; record_bytes is the same both times. */
void quota_hold(struct lane *lane, struct block *b);
void quota_unhold(struct lane *lane, const struct block *b);
int quota_lease_allows(const struct lane *lane, const struct block *b);

/*
 * Pin a block until a time of CLOCK_MONOTONIC, which is 24 hours from now at most, or not any longer (0).  ahead: for
 * who read it ahead, and not counted.
 */
void quota_pin(struct lane *lane, struct block *b, uint64_t until_ns, int ahead);
/* A block that may be pinned is of so many bytes now. */
void quota_pin_resize(struct lane *lane, struct block *b, uint32_t record_bytes);
/* The bytes that a tenant may have pinned now, and whether they allow this block of it. */
uint64_t quota_pins_limit(const struct lane *lane, const struct tenant *tenant);
int quota_pin_allows(const struct lane *lane, const struct block *b, uint64_t limit);

/* Some blocks of who is above his quota, if they are wanted by others, or may not be his: how many went. */
unsigned quota_return(struct lane *lane);

#endif
