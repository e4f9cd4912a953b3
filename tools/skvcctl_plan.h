/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvcctl_plan.h - how the daemon decides what blocks are coded with.  p: with SKVCCTL_GET_PLAN.
 */
#ifndef SKVCD_TOOLS_SKVCCTL_PLAN_H
#define SKVCD_TOOLS_SKVCCTL_PLAN_H

#include <cjson/cJSON.h>

#include "tools/skvcctl.h"

void skvcctl_print_plan(const struct skvcctl_picture *p, FILE *out);
/* Is it a key in hexadecimal ("...:GROUP")?  Then the key alone is in ret_key. */
bool skvcctl_parse_key(const char *word, char ret_key[65], uint32_t *ret_group);
/* p: with SKVCCTL_GET_PLAN, as above. */
void skvcctl_print_found(const struct skvcctl_picture *p, const struct skvcctl_found *found,
			 size_t count, FILE *out);
void skvcctl_add_plan(cJSON *root, const struct skvcctl_picture *p);

#endif
