package interop;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import com.google.rpc.ErrorInfo;
import com.google.rpc.Status;
import io.grpc.protobuf.StatusProto;
import java.util.Optional;

/** What an error says beside its code. */
final class ErrorDetails {

    private static final String DOMAIN = "conversations.v1";

    private ErrorDetails() {}

    /** The reason, by which a program tells errors apart; messages are for people and may change. */
    static String reason(Throwable error) {
        return find(error, ErrorInfo.class)
                .filter(info -> info.getDomain().equals(DOMAIN))
                .map(ErrorInfo::getReason)
                .orElse("");
    }

    /** The one detail of this type that a status error carries, if any; there is at most one of each. */
    static <T extends Message> Optional<T> find(Throwable error, Class<T> type) {
        Status status = StatusProto.fromThrowable(error); // from the trailer grpc-status-details-bin
        try {
            for (Any detail : status.getDetailsList()) {
                if (detail.is(type)) {
                    return Optional.of(detail.unpack(type));
                }
            }
        } catch (InvalidProtocolBufferException unreadable) {
            return Optional.empty();
        }
        return Optional.empty();
    }
}
