/* SPDX-License-Identifier: Apache-2.0 */
/*
 * args.h - the lane's memory for what operations name (lists of jobs, blocks of leases), and its jobs, which all
 * tenants share.  Lane only.
 */
#ifndef SKVCD_DAEMON_ARGS_H
#define SKVCD_DAEMON_ARGS_H

#include <stdint.h>

struct lane;
struct tenant;

/*
 * May who has `mine` of `all`, of which `used` are taken, have `wants` more?  Nobody gets more than he leaves to the
 * others: alone he can have one half, the next one a quarter and so on, and whoever comes last finds as much as all
 * before him together have left.
 */
static inline int args_share_allows(uint64_t mine, uint64_t wants, uint64_t used, uint64_t all)
{
	return used <= all && wants <= all - used && mine <= all - used - wants;
}

/* A slot of lane->args on this tenant's account, for args_give().  0, -EAGAIN: no room, or not for him. */
int args_take(struct lane *lane, struct tenant *tenant, uint64_t bytes, uint32_t *ret_slot);
void args_give(struct lane *lane, struct tenant *tenant, uint32_t slot);

/* One more job: 0, -EAGAIN. */
int args_take_job(const struct lane *lane, struct tenant *tenant);
void args_give_job(struct tenant *tenant);

#endif
