/* SPDX-License-Identifier: Apache-2.0 */
/*
 * policy.h - which block of a cache goes first.  Knows ids, parents and hashes of keys: no bytes, no clock, no I/O,
 * and allocates nothing after policy_new().  Lane-only.
 *
 * A block is worth nothing without its parent, so only leaves are victims.  Among leaves the one goes whose
 * next use is least likely for the room it takes, and how likely that is is measured, not assumed: blocks
 * fall into classes (used once, twice, ..., last of its request), and a sample of all keys, also of those
 * that went or never came, counts how often a block of a class is used again at an age.  From that comes a
 * worth for each class and age: the best ratio of expected uses to expected time, over all times to wait
 * (Gittins' index).  A class is a row of queues by age, so a victim is the worst of eight queue heads.
 *
 * Each place and each group has queues of its own, so that a victim among some of them costs no more.  Places 0 to
 * POLICY_BELOW - 1 are one cache; POLICY_BELOW is what lies behind it: the blocks there are nobody's children.
 */
#ifndef SKVCD_DAEMON_POLICY_H
#define SKVCD_DAEMON_POLICY_H

#include <stdbool.h>
#include <stdint.h>

#define POLICY_NONE UINT32_MAX
#define POLICY_PLACES 4u
#define POLICY_BELOW (POLICY_PLACES - 1)
#define POLICY_GROUPS 32u
#define POLICY_ALL UINT32_MAX /* places, or groups */

struct policy;

/* Ids are below nodes_max; memory is for a cache of up to about blocks_max of them.  0, -ENOMEM. */
int policy_new(uint32_t nodes_max, uint32_t blocks_max, struct policy **ret_policy);
struct policy *policy_free(struct policy *p);

/*
 * Is a block worth storing?  Not when blocks of its class hardly ever are used again before they have to go.
 * Asked once for each block that is not there; one that is refused counts as used, so that it is known
 * when it comes again.
 * @hash: of its key, evenly spread.  @last: the last block of its request, which a longer one replaces.
 */
bool policy_admits(struct policy *p, uint64_t hash, bool last);

/*
 * It came, to place 0: used once, and held.  The id must be new, or reset since it named another block.
 * @parent: its id, there or not, or POLICY_NONE.
 */
void policy_insert(struct policy *p, uint32_t id, uint32_t group, uint32_t parent, uint64_t hash,
		   bool last);
/* It was found below: used once, long ago, and held.  The id as above. */
void policy_found(struct policy *p, uint32_t id, uint32_t group);
/* It was used, held or not, wherever it is.  Of a request the order does not matter. */
void policy_use(struct policy *p, uint32_t id, uint64_t hash, bool last);
void policy_hold(struct policy *p, uint32_t id);   /* not a victim, until */
void policy_unhold(struct policy *p, uint32_t id); /* this; neither is a use */
/* It is there now.  @parent: as for policy_remove. */
void policy_move(struct policy *p, uint32_t id, uint32_t parent, uint32_t place);
/* It had no parent when it came, or lost it, and has this one now. */
void policy_link(struct policy *p, uint32_t id, uint32_t parent);
/*
 * It leaves, held or not.  One with children may be dropped; they stay, and are victims when they are leaves.
 * @parent: what it was inserted or linked with, or POLICY_NONE when that has been reset since.
 */
void policy_remove(struct policy *p, uint32_t id, uint32_t parent, uint64_t hash);
/* No block has this id any more; none that is left may name it as parent. */
void policy_reset(struct policy *p, uint32_t id);

/*
 * The leaf to go, which stays until it is removed; POLICY_NONE when none of those looked at may go.  Who may not is
 * looked at again when it is as old as if it had been used now.
 * @places, @groups: a bit for each.  @may_go: NULL: all may.
 */
uint32_t policy_victim(struct policy *p, uint32_t places, uint32_t groups,
		       bool (*may_go)(void *user, uint32_t id), void *user);
/* Uses per use of the cache that its room brings, to be compared with that of others. */
float policy_worth(const struct policy *p, uint32_t id);

bool policy_has(const struct policy *p, uint32_t id);
uint32_t policy_place(const struct policy *p, uint32_t id);    /* of one that is there */
uint32_t policy_children(const struct policy *p, uint32_t id); /* of it that are in the cache */
uint32_t policy_count(const struct policy *p); /* of the cache, without those below */
uint64_t policy_bytes(const struct policy *p); /* all memory, when full */

#endif
