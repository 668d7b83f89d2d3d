//! Every call of the service, by noun.

use std::pin::Pin;

use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};
use tranship_proto::v1::tranship_server::Tranship;
use tranship_proto::v1::{
    Container, CreateTokenReply, CreateTokenRequest, CreateVolumeRequest, Empty, ExecReply, ExecRequest,
    Host, Image, ImportImageRequest, InfoReply, InfoRequest, InitHostRequest, JoinHostRequest,
    KillContainerRequest, ListContainersReply, ListContainersRequest, ListHostsReply, ListHostsRequest,
    ListImagesReply, ListImagesRequest, ListMigrationsReply, ListMigrationsRequest, ListNetworksReply,
    ListNetworksRequest, ListVolumesReply, ListVolumesRequest, LogChunk, LogsRequest, Migration, NameRequest,
    RemoveContainerRequest, ResolveMigrationReply, ResolveMigrationRequest, RunContainerRequest,
    StartMigrationRequest, StopContainerRequest, Volume, WaitReply,
};

use super::{containers, exec, hosts, images, info, logs, migrations, networks, volumes};
use crate::daemon::Daemon;
use crate::migration::Conductor;

/// The service of one daemon.
#[derive(Clone)]
pub struct Api {
    daemon: Daemon,
    conductor: Conductor,
}

impl Api {
    /// The service that answers for `daemon`, whose migrations `conductor` conducts.
    #[must_use]
    pub fn new(daemon: Daemon, conductor: Conductor) -> Self {
        Self { daemon, conductor }
    }
}

type Answer<T> = Result<Response<T>, Status>;
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Tranship for Api {
    type LogsStream = Answers<LogChunk>;
    type ExecStream = Answers<ExecReply>;
    type WatchMigrationStream = Answers<Migration>;

    async fn info(&self, _: Request<InfoRequest>) -> Answer<InfoReply> {
        info::info(&self.daemon).await.map(Response::new)
    }

    async fn import_image(&self, request: Request<Streaming<ImportImageRequest>>) -> Answer<Image> {
        images::import(&self.daemon, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn list_images(&self, _: Request<ListImagesRequest>) -> Answer<ListImagesReply> {
        images::list(&self.daemon).await.map(Response::new)
    }

    async fn remove_image(&self, request: Request<NameRequest>) -> Answer<Empty> {
        images::remove(&self.daemon, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn run_container(&self, request: Request<RunContainerRequest>) -> Answer<Container> {
        containers::run(&self.daemon, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn list_containers(&self, request: Request<ListContainersRequest>) -> Answer<ListContainersReply> {
        containers::list(&self.daemon, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn inspect_container(&self, request: Request<NameRequest>) -> Answer<Container> {
        containers::inspect(&self.daemon, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn logs(&self, request: Request<LogsRequest>) -> Answer<Self::LogsStream> {
        logs::logs(&self.daemon, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn exec(&self, request: Request<Streaming<ExecRequest>>) -> Answer<Self::ExecStream> {
        exec::exec(&self.daemon, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn stop_container(&self, request: Request<StopContainerRequest>) -> Answer<Empty> {
        containers::stop(&self.daemon, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn kill_container(&self, request: Request<KillContainerRequest>) -> Answer<Empty> {
        containers::kill(&self.daemon, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn pause_container(&self, request: Request<NameRequest>) -> Answer<Empty> {
        containers::pause(&self.daemon, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn unpause_container(&self, request: Request<NameRequest>) -> Answer<Empty> {
        containers::unpause(&self.daemon, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn wait_container(&self, request: Request<NameRequest>) -> Answer<WaitReply> {
        containers::wait(&self.daemon, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn remove_container(&self, request: Request<RemoveContainerRequest>) -> Answer<Empty> {
        containers::remove(&self.daemon, &self.conductor, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn create_volume(&self, request: Request<CreateVolumeRequest>) -> Answer<Volume> {
        volumes::create(&self.daemon, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn list_volumes(&self, _: Request<ListVolumesRequest>) -> Answer<ListVolumesReply> {
        volumes::list(&self.daemon).await.map(Response::new)
    }

    async fn inspect_volume(&self, request: Request<NameRequest>) -> Answer<Volume> {
        volumes::inspect(&self.daemon, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn remove_volume(&self, request: Request<NameRequest>) -> Answer<Empty> {
        volumes::remove(&self.daemon, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn list_networks(&self, _: Request<ListNetworksRequest>) -> Answer<ListNetworksReply> {
        Ok(Response::new(networks::list(&self.daemon)))
    }

    async fn init_host(&self, request: Request<InitHostRequest>) -> Answer<Host> {
        hosts::init(&self.daemon, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn create_token(&self, request: Request<CreateTokenRequest>) -> Answer<CreateTokenReply> {
        hosts::create_token(&self.daemon, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn join_host(&self, request: Request<JoinHostRequest>) -> Answer<Host> {
        hosts::join(&self.daemon, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn list_hosts(&self, request: Request<ListHostsRequest>) -> Answer<ListHostsReply> {
        hosts::list(&self.daemon, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn remove_host(&self, request: Request<NameRequest>) -> Answer<Empty> {
        hosts::remove(&self.daemon, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn start_migration(&self, request: Request<StartMigrationRequest>) -> Answer<Migration> {
        migrations::start(&self.conductor, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn watch_migration(&self, request: Request<NameRequest>) -> Answer<Self::WatchMigrationStream> {
        migrations::watch(&self.conductor, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn get_migration(&self, request: Request<NameRequest>) -> Answer<Migration> {
        migrations::get(&self.conductor, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn list_migrations(&self, _: Request<ListMigrationsRequest>) -> Answer<ListMigrationsReply> {
        migrations::list(&self.conductor).await.map(Response::new)
    }

    async fn cancel_migration(&self, request: Request<NameRequest>) -> Answer<Empty> {
        migrations::cancel(&self.conductor, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn resolve_migration(
        &self,
        request: Request<ResolveMigrationRequest>,
    ) -> Answer<ResolveMigrationReply> {
        migrations::resolve(&self.conductor, request.into_inner())
            .await
            .map(Response::new)
    }
}
