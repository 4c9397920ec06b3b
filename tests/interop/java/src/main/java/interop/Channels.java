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
import java.util.concurrent.TimeUnit;

/** Channels that behave as a service config says. */
final class Channels {

    private static final int MAX_MESSAGE_BYTES = 32 << 20; // limit of the server; Java receives at most 4 MiB by default

    private Channels() {}

    /** The config is a default: one that a resolver finds goes before it. Its health checks need grpc-services. */
    static ManagedChannel open(String target, Path serviceConfig) throws IOException {
        return builder(target, serviceConfig)
                .enableRetry()
                .perRpcBufferLimit(MAX_MESSAGE_BYTES) // larger requests are not retried; 1 MiB by default
                .retryBufferSize(4L * MAX_MESSAGE_BYTES) // for all calls in flight; 16 MiB by default
                .build();
    }

    /** For at most 100 watches, which are resumed by token instead of retried, and look for a lost server often. */
    static ManagedChannel openForWatches(String target, Path serviceConfig) throws IOException {
        return builder(target, serviceConfig)
                .disableRetry()
                .keepAliveTime(30, TimeUnit.SECONDS)
                .keepAliveTimeout(10, TimeUnit.SECONDS)
                .build();
    }

    private static ManagedChannelBuilder<?> builder(String target, Path serviceConfig) throws IOException {
        ManagedChannelBuilder<?> builder = Grpc.newChannelBuilder(target, InsecureChannelCredentials.create())
                .defaultServiceConfig(json(serviceConfig))
                .maxInboundMessageSize(MAX_MESSAGE_BYTES);
        if (target.startsWith("unix:")) {
            builder.overrideAuthority("localhost"); // the default is the path, which is not a host name
        }
        return builder;
    }

    /** With all numbers as Double, as gRPC wants them. */
    private static Map<String, ?> json(Path file) throws IOException {
        return new Gson().fromJson(Files.readString(file), new TypeToken<Map<String, ?>>() {});
    }
}
