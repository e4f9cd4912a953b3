/* SPDX-License-Identifier: Apache-2.0 */
/*
 * shipped.h - profiles that came as files (skvc-bench calibrate): which of them suits a namespace.  Control thread.
 */
#ifndef SKVCD_DAEMON_SHIPPED_H
#define SKVCD_DAEMON_SHIPPED_H

#include "daemon/config.h"
#include "daemon/models.h"
#include "daemon/registry.h"

/*
 * Offer a namespace the profile that [profile] directory has for it: <model>.skvp, with '_' for what is no letter,
 * digit, '.' or '-' in the namespace's model, then without what stands behind an '@' in it, else the first *.skvp, by
 * name, of its geometry.  Its model is attached when it is loaded.  The lane takes it from ns->shipped.  What is wrong
 * with a file is logged.  And the model that is called as its own, the same way, is offered for a fit in ns->fit_model.
 */
void shipped_offer(const struct config *config, const struct models *models, struct namespace *ns);
/* The same for each namespace whose profile there wants this model, which has just been loaded. */
void shipped_offer_model(const struct config *config, const struct models *models,
			 struct registry *registry, const uint8_t *digest);

#endif
