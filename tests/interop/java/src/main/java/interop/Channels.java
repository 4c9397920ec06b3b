package interop;

import com.google.gson.Gson;
import com.google.gson.reflect.TypeToken;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;

/** Channels that behave as a service config says. */
final class Channels {

    private static final int MAX_MESSAGE_BYTES = 32 << 20; // limit of the server; Java receives at most 4 MiB by default

    private Channels() {}

    /** The config is a default: one that a resolver finds goes before it. Its health checks need grpc-services. */
    static ManagedChannel open(String target, Path serviceConfig) throws IOException {
        ManagedChannelBuilder<?> builder = Grpc.newChannelBuilder(target, InsecureChannelCredentials.create())
                .defaultServiceConfig(json(serviceConfig))
                .enableRetry()
                .perRpcBufferLimit(MAX_MESSAGE_BYTES) // larger requests are not retried; 1 MiB by default
                .retryBufferSize(4L * MAX_MESSAGE_BYTES) // for all calls in flight; 16 MiB by default
                .maxInboundMessageSize(MAX_MESSAGE_BYTES);
        if (target.startsWith("unix:")) {
            builder.overrideAuthority("localhost"); // the default is the path, which is not a host name
        }
        return builder.build();
    }

    /** With all numbers as Double, as gRPC wants them. */
    private static Map<String, ?> json(Path file) throws IOException {
        return new Gson().fromJson(Files.readString(file), new TypeToken<Map<String, ?>>() {});
    }
}
