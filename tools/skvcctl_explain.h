/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvcctl_explain.h - what a reason or a counter means, how it stands, and what can be done about it.
 */
#ifndef SKVCD_TOOLS_SKVCCTL_EXPLAIN_H
#define SKVCD_TOOLS_SKVCCTL_EXPLAIN_H

#include "tools/skvcctl.h"

#define SKVCCTL_ADVICES 32u

/* p: with SKVCCTL_GET_STATS and SKVCCTL_GET_TEXTS.  word NULL: every reason that was ever given. */
int skvcctl_explain(const struct skvcctl_picture *p, const char *word, FILE *out); /* -ENOENT */
const char *skvcctl_advice(const char *reason); /* NULL: there is nothing to do */

#endif
