//! Writes and reads of the states of roll-outs.

use std::collections::BTreeSet;

use kube::api::{Api, ListParams};
use skyhook_crds::Skyhook;
use skyhook_crds::rollout::RolloutState;

use super::{Applier, ApplyError, failed, guarded_delete, owner, post, written_for};
use skyhook_fleet::batches::Look;
use skyhook_fleet::effect::{AsOf, BatchCheck, Effect};
use skyhook_fleet::facts::{LeaseFact, RolloutFact, WireLease, WireRollout, WireSkyhook};
use skyhook_fleet::index::Change;

impl Applier {
    fn rollouts(&self) -> Api<RolloutState> {
        Api::all(self.client.clone())
    }

    /// Makes the writes and looks that are about roll-outs.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the caller picks these effects"
    )]
    pub(super) async fn rollout(&self, effect: &Effect) -> Result<Option<Change>, ApplyError> {
        match effect {
            Effect::WriteRollout {
                name,
                skyhook_uid,
                goes_with_owner,
                at,
                spec,
            } => {
                let mut state = RolloutState::new(name, (**spec).clone());
                let metadata = &mut state.metadata;
                if *goes_with_owner {
                    let owner = owner::<Skyhook>(name, skyhook_uid, Some(true));
                    metadata.owner_references = Some(vec![owner]);
                } else {
                    metadata.annotations = Some(written_for(skyhook_uid));
                }
                self.write_rollout(name, state, at.as_ref()).await
            }
            Effect::DeleteRollout { name, at, not_of } => {
                self.delete_rollout(name, at, not_of.as_deref()).await
            }
            Effect::LookForLeases {
                skyhook,
                skyhook_uid,
                looks,
            } => self.look_for_leases(skyhook, skyhook_uid, looks).await,
            Effect::LookForState { skyhook, states } => self.look_for_state(skyhook, states).await,
            _ => Ok(None),
        }
    }

    /// Creates the state, or replaces the whole of it on the version that was decided on.
    async fn write_rollout(
        &self,
        name: &str,
        mut state: RolloutState,
        at: Option<&AsOf>,
    ) -> Result<Option<Change>, ApplyError> {
        let Some(at) = at else {
            let created = self.rollouts().create(&post(), &state).await;
            created.map_err(|source| failed("create", "rolloutstate", name, source))?;
            // The watch may have reported its deletion since.
            return Ok(None);
        };
        state.metadata.uid = Some(at.uid.clone());
        state.metadata.resource_version = Some(at.resource_version.clone());
        let api: Api<WireRollout> = Api::all(self.client.clone());
        let failed = |source| failed("put", "rolloutstate", name, source);
        let body = serde_json::to_vec(&state).map_err(|e| failed(kube::Error::SerdeError(e)))?;
        let request = kube::core::Request::new(api.resource_url())
            .replace(name, &post(), body)
            .map_err(|e| failed(kube::Error::BuildRequest(e)))?;
        let written: WireRollout = self.client.request(request).await.map_err(failed)?;
        Ok(Some(Change::Rollout(Box::new(written))))
    }

    /// Deletes the state, unless a GET shows that the Skyhook that owns it is there.
    async fn delete_rollout(
        &self,
        name: &str,
        at: &AsOf,
        not_of: Option<&str>,
    ) -> Result<Option<Change>, ApplyError> {
        if let Some(owner) = not_of {
            self.check_gone(name, owner, name).await?;
        }
        let deleted = self.rollouts().delete(name, &guarded_delete(at)).await;
        deleted.map_err(|source| failed("delete", "rolloutstate", name, source))?;
        Ok(None)
    }

    /// Checks with a GET that the Skyhook with the UID `uid`, for which the object `object` was written, does not exist.
    pub(super) async fn check_gone(
        &self,
        skyhook: &str,
        uid: &str,
        object: &str,
    ) -> Result<(), ApplyError> {
        let api: Api<WireSkyhook> = Api::all(self.client.clone());
        let live = api.get_opt(skyhook).await;
        let live = live.map_err(|source| failed("get", "skyhook", skyhook, source))?;
        if live.is_some_and(|live| live.metadata.uid.as_deref() == Some(uid)) {
            return Err(ApplyError::Owned {
                name: object.to_owned(),
            });
        }
        Ok(())
    }

    /// Checks with a GET that the stored state lets the node be worked on in its batch.
    pub(super) async fn check_batch(
        &self,
        node: &str,
        check: &BatchCheck,
    ) -> Result<(), ApplyError> {
        let api: Api<WireRollout> = Api::all(self.client.clone());
        let live = api.get_opt(&check.skyhook).await;
        let live = live.map_err(|source| failed("get", "rolloutstate", &check.skyhook, source))?;
        if live.is_some_and(|live| check.holds(&RolloutFact::new(live))) {
            return Ok(());
        }
        Err(ApplyError::NotInBatch {
            node: node.to_owned(),
        })
    }

    /// Reads the state of a roll-out, and says which of `states` are gone: a UID never comes back. If one of them is there,
    /// the picture was old, and the watch will deliver it.
    async fn look_for_state(
        &self,
        skyhook: &str,
        states: &[String],
    ) -> Result<Option<Change>, ApplyError> {
        let api: Api<WireRollout> = Api::all(self.client.clone());
        let live = api.get_opt(skyhook).await;
        let live = live.map_err(|source| failed("get", "rolloutstate", skyhook, source))?;
        let there = live.and_then(|live| live.metadata.uid);
        let gone = states.iter().filter(|state| Some(*state) != there.as_ref());
        Ok(Some(Change::StatesGone {
            skyhook: skyhook.to_owned(),
            states: gone.cloned().collect(),
        }))
    }

    /// Lists the leases with a consistent read, and says which members have none of this Skyhook. A node that another
    /// Skyhook works on has left the batch. A lease that cannot be decoded may be of this Skyhook, and if the UID of its
    /// node cannot be read either, it may be of any member.
    async fn look_for_leases(
        &self,
        skyhook: &str,
        skyhook_uid: &str,
        looks: &[Look],
    ) -> Result<Option<Change>, ApplyError> {
        let api: Api<WireLease> = Api::all(self.client.clone());
        let list = api.list(&ListParams::default()).await;
        let list = list.map_err(|source| failed("list", "interruptionleases", skyhook, source))?;
        let leases: Vec<LeaseFact> = list.items.into_iter().map(LeaseFact::new).collect();
        let own = leases
            .iter()
            .filter(|fact| fact.skyhook_uid().is_none_or(|uid| uid == skyhook_uid));
        let held: BTreeSet<&str> = own.map(|fact| fact.member.as_str()).collect();
        let is_left = |look: &&Look| !held.contains("") && !held.contains(look.id.as_str());
        Ok(Some(Change::Left {
            skyhook: skyhook.to_owned(),
            looks: looks.iter().filter(is_left).cloned().collect(),
        }))
    }
}
